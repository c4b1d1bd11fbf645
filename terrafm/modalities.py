"""All sensors that are known: the three of the paper, and those of other packages.

The single source of truth for band lists. Models read the channel counts here, data the GSDs
and units, exports the data contract. Source of the order: the released 12-channel weights drop
the cirrus band B10 from Level-1C.

A sensor of one's own is a `Modality` in a module of one's own, named as an entry point of an
installed package in the group "terrafm.modalities", or as "package.module:NAME" in the environment
variable TERRAFM_MODALITIES. Both reach every process by themselves, as an import alone would not:
readers, training workers and validations are processes of their own. docs/new_sensor.md goes
through it step by step.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points

from terrafm.errors import UsageError
from terrafm.modality import Modality as Modality

ENTRY_POINTS = "terrafm.modalities"
VARIABLE = "TERRAFM_MODALITIES"

_S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_S2_GSD = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20)


def _sentinel_2(name: str, title: str) -> Modality:
    return Modality(
        name, _S2_BANDS, _S2_GSD, "uint16", 0, 1e-4, "reflectance", title,
        radiometry="sentinel-2", picture=("B04", "B03", "B02"),
    )  # fmt: skip


MODALITIES: dict[str, Modality] = {
    "s1": Modality(
        "s1", ("VV", "VH"), (10, 10), "int16", -32768, 0.01, "dB", "Sentinel-1",
        radiometry="sentinel-1",
    ),
    "s2_l1c": _sentinel_2("s2_l1c", "Sentinel-2 L1C"),
    "s2_l2a": _sentinel_2("s2_l2a", "Sentinel-2 L2A"),
}  # fmt: skip
"""The paper's three sensors, then those of other packages by their names."""

SENTINEL = tuple(MODALITIES)
"""The paper's: what every encoder has and what is taken where nobody says which."""

OPTICAL = ("s2_l1c", "s2_l2a")
"""Those whose raw pixels may still hold an offset."""

_FAULTS: list[str] = []


def check_plugins() -> None:
    """Raises UsageError: a sensor of another package could not be taken; says which and why."""
    if _FAULTS:
        raise UsageError(_FAULTS[0])


def _named() -> Iterator[tuple[str, str]]:
    """(path, where it was named) of all sensors of other packages."""
    for point in entry_points(group=ENTRY_POINTS):
        yield point.value, f"the entry point {point.name} of {ENTRY_POINTS}"
    for path in os.environ.get(VARIABLE, "").split(","):
        if path.strip():
            yield path.strip(), VARIABLE


def _load(path: str) -> list[Modality]:
    """One sensor, or all of a list or tuple of them."""
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ValueError("write it as package.module:NAME")
    found = getattr(import_module(module), attribute)
    several = list(found) if isinstance(found, list | tuple) else [found]
    if not several or not all(isinstance(one, Modality) for one in several):
        raise TypeError("it is no terrafm.Modality, nor a list of them")
    return several


def _add_plugins() -> None:
    # Told by `check_plugins`, in one line, and not by whoever happens to import this module first.
    added: dict[str, Modality] = {}
    for path, where in _named():
        try:
            sensors = _load(path)
        except Exception as error:  # noqa: BLE001 - a stranger's module can fail in any way
            why = " ".join(str(error).split()) or type(error).__name__
            _FAULTS.append(
                f"cannot load the sensor {path}, named in {where}: {why}; install its package, or "
                "set PYTHONPATH to the folder of its module"
            )
            continue
        for sensor in sensors:
            if sensor.name in MODALITIES or added.get(sensor.name, sensor) != sensor:
                _FAULTS.append(
                    f"the sensor {path}, named in {where}: there is another one named {sensor.name}"
                )
            elif sensor.radiometry != "stated":
                _FAULTS.append(
                    f"the sensor {path}, named in {where}: radiometry {sensor.radiometry} is that "
                    "of TerraFM's own sensors: leave it out"
                )
            added[sensor.name] = sensor
    # In one order in every process, whatever was installed first.
    MODALITIES.update((name, added[name]) for name in sorted(added) if name not in MODALITIES)


_add_plugins()

FIRST_CHOICE = ("s2_l2a", "s2_l1c", "s1", *(m for m in MODALITIES if m not in SENTINEL))
"""Where one modality has to do, the first of these that is there: published scores are of L2A."""

SENSOR_TITLES = {name: MODALITIES[name].title for name in FIRST_CHOICE}
"""What people read, and what they look at first comes first."""
