"""What a dataset of shards says about itself: `manifest.json` and the cell groups in it.

The manifest is written last, so that a dataset without one is an unfinished ingest. Each commit
that changes the content writes a new version beside the old ones: `manifest-<version>.json` and
`index-<version>.parquet` never change, `manifest.json` is a copy of the newest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from terrafm.data.shards.codec import CODECS, DEFAULT_CODEC, check_codec
from terrafm.data.shards.report import check_report
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, VARIABLE
from terrafm.storage import exists, join, list_names, read_bytes, to_json
from terrafm.storage.records import parse_json, validated

# 1 named one codec for the whole dataset, 2 names it per cell group.
FORMAT_VERSION = 2
LARGEST_TILE = 16384
"""Side of a tile, pixels: what a machine can hold of all sensors."""


@dataclass(frozen=True)
class CellGroup:
    """The bands of one modality that share a ground sampling distance: one array per tile.

    Attributes:
        modality: key of `terrafm.modalities.MODALITIES`.
        gsd: ground sampling distance, metres.
        bands: band names, in the array's first axis.
        height: rows of the array.
        width: columns of the array.
        codec: of the array's bytes, a value of `terrafm.data.shards.codec.CODECS`.
    """

    modality: str
    gsd: int
    bands: tuple[str, ...]
    height: int
    width: int
    codec: str = DEFAULT_CODEC

    @property
    def name(self) -> str:
        """Column name, such as "s2_l2a_20m"."""
        return f"{self.modality}_{self.gsd}m"

    @property
    def dtype(self) -> str:
        """Storage type of a pixel."""
        return MODALITIES[self.modality].dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return len(self.bands), self.height, self.width


def side_of(tile_size: int, gsd: int, group_gsd: int) -> int:
    """Side of a cell group's array, pixels; 0 where it has none.

    Args:
        tile_size: side of a tile at the finest GSD, pixels.
        gsd: finest GSD, metres.
        group_gsd: that of the group, metres.
    """
    return tile_size * gsd // group_gsd if group_gsd >= 1 else 0


def with_codec(groups: Sequence[CellGroup], codec: str) -> tuple[CellGroup, ...]:
    """Cell groups that are encoded by a codec, named as in `ingest.codec`."""
    return tuple(replace(group, codec=CODECS[codec]) for group in groups)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Versioned(BaseModel):
    format_version: int = 0


class StoredFile(_Part):
    """A file of the dataset with what proves that it is whole."""

    name: str
    tiles: Annotated[int, Field(ge=0, lt=2**62)]
    bytes: Annotated[int, Field(ge=0, lt=2**62)]
    sha256: str


class BandStatistics(_Part):
    """Mean and standard deviation per band in physical units (dB, reflectance)."""

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Manifest(_Part):
    """Everything about a dataset that does not grow with its tiles, the shard list apart.

    Attributes:
        version: counts the commits that changed the content, from 1.
        fingerprint: SHA-256 over tiles, cell checksums, statistics and legend; independent of
            time, machine and the division into shards.
        tile_size: side of a tile at the finest GSD, pixels.
        gsd: finest ground sampling distance, metres.
        legend: land-cover code -> name.
        class_counts: land-cover code -> tiles with that majority class.
        report: what ingest counted and decided.
    """

    format: Literal["terrafm-dataset"] = "terrafm-dataset"
    format_version: int = FORMAT_VERSION
    version: Annotated[int, Field(ge=1)]
    fingerprint: str
    tiles: Annotated[int, Field(ge=0, lt=2**62)]
    tile_size: Annotated[int, Field(ge=1, le=LARGEST_TILE)]
    gsd: Annotated[int, Field(ge=1)]
    groups: tuple[CellGroup, ...]
    statistics: dict[str, BandStatistics]
    legend: dict[int, str]
    class_counts: dict[int, int]
    index: StoredFile
    shards: tuple[StoredFile, ...]
    report: Annotated[dict[str, Any], AfterValidator(check_report)]

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("format_version") == 1:
            fields = dict(fields, format_version=FORMAT_VERSION)
            codec = fields.pop("codec", DEFAULT_CODEC)
            fields["groups"] = [{**group, "codec": codec} for group in fields.get("groups", [])]
        return fields

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        # Memory is taken for arrays of these sides before a cell is seen.
        for group in self.groups:
            if group.modality not in MODALITIES:
                raise ValueError(
                    f"cell group {group.name} is of no modality that is known here: install the "
                    f"package that brings it, or name it in {VARIABLE} (docs/new_sensor.md)"
                )
            side = side_of(self.tile_size, self.gsd, group.gsd)
            if side < 1 or (group.height, group.width) != (side, side):
                raise ValueError(
                    f"cell group {group.name} has {group.height} x {group.width} pixels, tiles of "
                    f"{self.tile_size} px at {self.gsd} m have {side} x {side}"
                )
            unknown = set(group.bands) - set(MODALITIES[group.modality].bands)
            if unknown or len(set(group.bands)) < len(group.bands):
                raise ValueError(f"cell group {group.name} has other bands than {group.modality}")
        return self

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        """Tiles of another package's sensor mean what its entry said when they were made."""
        settings = self.report.get("settings", {})
        for name, stated in settings.get("sensors", {}).items():
            sensor = MODALITIES.get(name)
            for key in ("gsd", "dtype", "nodata", "scale", "unit") if sensor else ():
                now = getattr(sensor, key)
                if stated.get(key) != (list(now) if isinstance(now, tuple) else now):
                    raise ValueError(
                        f"the entry of the sensor {name} has changed since these tiles were made: "
                        f"{key} was {stated.get(key)}, now {now}"
                    )
        return self

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for modality in {group.modality for group in self.groups}:
            if modality not in self.statistics:
                raise ValueError(f"statistics: none of {modality}, of which there are cells")
        for modality, found in self.statistics.items():
            if not len(found.bands) == len(found.mean) == len(found.std):
                raise ValueError(f"statistics.{modality}: bands, mean and std differ in number")
        if self.index.tiles != self.tiles:
            raise ValueError(f"index.tiles: {self.index.tiles}, of {self.tiles} tiles in all")
        return self

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return to_json(self.model_dump(mode="json"), indent=1) + "\n"


def manifest_name(version: int | None = None) -> str:
    """File name of a version's manifest; of the newest without a version."""
    return "manifest.json" if version is None else f"manifest-{version}.json"


def list_versions(uri: str) -> list[int]:
    """Numbers of a dataset's versions, ascending."""
    numbers = [
        name.removeprefix("manifest-").removesuffix(".json")
        for name in list_names(uri)
        if name.startswith("manifest-") and name.endswith(".json")
    ]
    newest = read_manifest(uri).version
    # One that is newer than `manifest.json` was not committed to the end.
    return sorted(int(n) for n in numbers if n.isdigit() and int(n) <= newest)


def find_version(uri: str, fingerprint: str) -> Manifest | None:
    """The manifest of the version with a fingerprint; None where no version has it.

    Raises:
        UsageError: as `read_manifest`.
    """
    newest = read_manifest(uri)
    if newest.fingerprint == fingerprint:
        return newest
    for version in reversed(list_versions(uri)):
        manifest = read_manifest(uri, version)
        if manifest.fingerprint == fingerprint:
            return manifest
    return None


def read_manifest(uri: str, version: int | None = None) -> Manifest:
    """Reads and checks a dataset's manifest.

    Raises:
        UsageError: nothing there, not a dataset, an unfinished one, or one of another format.
    """
    where = join(uri, manifest_name(version))
    try:
        text = read_bytes(where)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(_why_missing(uri, version)) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {where}: {error}") from None
    try:
        fields = parse_json(text)
        # Before all else: a later version may have other fields.
        version_of = validated(fields, _Versioned).format_version
        if version_of > FORMAT_VERSION:
            raise UsageError(
                f"{where} has format version {version_of}, "
                f"this TerraFM reads up to {FORMAT_VERSION}: upgrade TerraFM"
            )
        manifest = validated(fields, Manifest)
    except ValueError as error:
        raise UsageError(f"{where} is not the manifest of a TerraFM dataset: {error}") from None
    for group in manifest.groups:
        check_codec(group.codec, f"{where}: cell group {group.name}")
    return manifest


def _why_missing(uri: str, version: int | None) -> str:
    if not exists(uri):
        return f"dataset {uri} does not exist"
    if version is not None and exists(join(uri, manifest_name())):
        return f"dataset {uri} has no version {version}"
    if exists(join(uri, "shards")) or exists(join(uri, "entries")):
        return f"dataset {uri} is unfinished (no manifest.json): run the same ingest again"
    return f"{uri} is not a TerraFM dataset (no manifest.json): make one with terrafm ingest"
