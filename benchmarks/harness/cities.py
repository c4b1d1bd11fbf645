"""Tiles of Level-1C and the VV of Sentinel-1, ingested once, from cities or what is like them."""

import subprocess
import sys
from pathlib import Path

from common import child_environment, note

TILE = 96
"""Side of a tile, pixels."""
CITIES = "harness.oscd:OscdCities"


def ingest(archive: str, output: Path, source: str = CITIES) -> str:
    """Ingests an archive, unless an earlier run did.

    Args:
        archive: as `source` takes it.
        output: folder of the dataset.
        source: as `terrafm ingest --source` takes it.

    Returns:
        URI of the dataset.
    """
    if not (output / "manifest.json").exists():
        note(f"ingest of {archive}")
        command = [
            *(sys.executable, "-m", "terrafm", "ingest", "--source", source, "--input", archive),
            *("--output", str(output), "--tile-size", str(TILE), "--modalities", "s1,s2_l1c"),
            *("--set", "ingest.allow_missing_bands=[s1]", "--set", "ingest.workers=0"),
        ]
        subprocess.run(command, check=True, env=child_environment(), stdout=subprocess.DEVNULL)
    return str(output)
