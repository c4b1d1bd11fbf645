"""Tiles in colour, for people: from the dataset or the GeoTIFFs that were embedded."""

from collections.abc import Sequence
from typing import Any

from terrafm.data.shards.dataset import Dataset
from terrafm.embed.schema import EmbeddingManifest
from terrafm.errors import UsageError
from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.colours import colour_bands, whole_tile
from terrafm.search.preview import Preview, Previews


def open_previews(
    manifest: EmbeddingManifest, data: str | None, tiles: Sequence[dict[str, Any]]
) -> Previews:
    """Finds the pixels of some tiles.

    Args:
        manifest: of the folder of embeddings.
        data: URI of the dataset or GeoTIFFs, where they no longer lie where the manifest says.
        tiles: those of `find_similar` that will be looked at.

    Raises:
        UsageError: what was embedded is not there any more.
    """
    uri = data or manifest.data
    try:
        if manifest.data_kind == "geotiff":
            # What reads windows loads torch, seconds that pictures of a dataset do not need.
            from terrafm.search.geotiff_previews import GeotiffPreviews

            return GeotiffPreviews(uri, manifest)
        return DatasetPreviews(uri, manifest.data_fingerprint, [t["tile_id"] for t in tiles])
    except UsageError as error:
        advice = "" if data else "; --data URI says where the pixels lie now"
        raise UsageError(f"no pictures of the tiles: {error}{advice}") from None


class DatasetPreviews:
    """Pictures of a dataset's tiles: natural colour of Sentinel-2 where there, else Sentinel-1.

    Args:
        uri: the dataset's folder.
        fingerprint: of the version that was embedded.
        tile_ids: of the tiles that will be looked at.

    Raises:
        UsageError: there is no such dataset or version.
    """

    def __init__(self, uri: str, fingerprint: str, tile_ids: Sequence[str]) -> None:
        self._dataset = Dataset.open(uri, fingerprint=fingerprint)
        found = self._dataset.rows.find(tile_ids).tolist()
        self._rows = dict(zip(tile_ids, found, strict=True))

    def preview(self, tile: dict[str, Any]) -> Preview | None:
        """See `Previews.preview`."""
        dataset = self._dataset
        location = dataset.locations([self._rows[tile["tile_id"]]])
        for modality in (name for name in SENSOR_TITLES if name in dataset.modalities):
            groups = [
                group.name
                for group in dataset.groups
                if group.modality == modality and colour_bands(modality) & set(group.bands)
            ]
            pixels = dataset.reader.read(location, [groups])[0]
            if pixels:
                return Preview(modality, whole_tile(dataset, pixels, modality))
        return None
