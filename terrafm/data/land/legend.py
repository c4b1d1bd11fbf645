"""Land-cover legends other than WorldCover's: a mapping file in YAML.

    codes: {1: 80, 2: 10}        raw code of the archive's rasters -> WorldCover code
    names: {80: lakes and sea}   code of the dataset -> name; WorldCover's own otherwise

With `codes`, every raw code must be in it. Without, codes stay as they are and each needs a name.
A target that is no WorldCover code needs a name too.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.config.yaml_text import parse_yaml, shortened
from terrafm.data.land.landcover import WORLDCOVER_CLASSES
from terrafm.data.land.selection import NO_CLASS
from terrafm.errors import UsageError
from terrafm.storage import read_bytes

_LARGEST_CODE = 2**31 - 1


@dataclass(frozen=True)
class Legend:
    """What the codes of an archive's land-cover rasters mean.

    Attributes:
        uri: of the mapping file.
        codes: raw code -> code of the dataset; None keeps raw codes.
        names: code of the dataset -> name.
    """

    uri: str
    codes: dict[int, int] | None = None
    names: dict[int, str] = field(default_factory=dict)

    def translate(self, raw: NDArray[np.integer[Any]], where: str) -> NDArray[np.int32]:
        """Raw codes to codes of the dataset.

        Args:
            raw: (H, W) codes; `NO_CLASS` stays.
            where: the place, for the error.

        Raises:
            UsageError: a raw code that the mapping file does not have.
        """
        values, inverse = np.unique(raw, return_inverse=True)
        known = {code: code for code in self.names} if self.codes is None else self.codes
        known = known | {NO_CLASS: NO_CLASS}
        absent = [int(code) for code in values if int(code) not in known]
        if absent:
            pixels = int(np.isin(raw, absent).sum())
            key = "names" if self.codes is None else "codes"
            raise UsageError(
                f"land-cover code {', '.join(map(str, absent))} of {where} ({pixels} pixels) is "
                f"not in the legend {self.uri}: add it under {key}"
            )
        codes = [known[int(code)] for code in values]
        translated: NDArray[np.int32] = np.asarray(codes, dtype=np.int32)[inverse]
        return translated.reshape(raw.shape)

    def to_json(self) -> dict[str, Any]:
        """Its content, ready for JSON: what tells two legends apart."""
        codes = None if self.codes is None else {str(k): v for k, v in sorted(self.codes.items())}
        return {"codes": codes, "names": {str(k): v for k, v in sorted(self.names.items())}}


def read_legend(uri: str) -> Legend:
    """Reads a mapping file.

    Raises:
        UsageError: no such file, not YAML, or not such a mapping; names the entry.
    """
    try:
        content = parse_yaml(read_bytes(uri))
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise UsageError(f"cannot read the legend {uri}: {detail}") from None
    if not isinstance(content, dict) or not content or set(content) - {"codes", "names"}:
        raise UsageError(f"the legend {uri} must have the keys codes and names, or one of them")
    for key, kind in (("codes", int), ("names", str)):
        entries = content.get(key, {})
        if not isinstance(entries, dict):
            raise UsageError(f"the legend {uri}: {key} must map codes, not be {shortened(entries)}")
        for code, value in entries.items():
            numbers = [n for n in (code, value) if not isinstance(n, str)]
            if type(code) is not int or type(value) is not kind or not all(map(_is_code, numbers)):
                wanted = "a code" if kind is int else "a name"
                raise UsageError(
                    f"the legend {uri}: {key} must map a code (a whole number) to {wanted}, "
                    f"not {shortened(code)}: {shortened(value)}"
                )
    codes, names = content.get("codes"), content.get("names", {})
    unnamed = sorted(set((codes or {}).values()) - set(WORLDCOVER_CLASSES) - set(names))
    if unnamed:
        raise UsageError(
            f"the legend {uri}: code {unnamed[0]} is not one of WorldCover's "
            f"({', '.join(map(str, WORLDCOVER_CLASSES))}): give it a name under names"
        )
    return Legend(uri, codes, names)


def _is_code(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= _LARGEST_CODE
