"""Windows of GeoTIFFs in colour, cut from the files that were embedded."""

import re
from contextlib import closing
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terrafm.config.yaml_text import shortened
from terrafm.data.rasters.bands import match_bands
from terrafm.data.rasters.geotiff import OpenGeotiff
from terrafm.data.sources.sensor_files import SensorFiles, survey_of
from terrafm.embed.schema import EmbeddingManifest
from terrafm.errors import TerraFMError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.pictures.colours import colour_bands, colours
from terrafm.search.preview import Preview
from terrafm.storage import exists, join
from terrafm.storage.limits import WINDOW_SIDE


class GeotiffPreviews:
    """Pictures of windows of GeoTIFFs; None of files without the bands of a picture.

    Args:
        uri: the file, or the folder of all files.
        manifest: says which band is which.

    Raises:
        UsageError: there is no such file or folder.
    """

    def __init__(self, uri: str, manifest: EmbeddingManifest) -> None:
        if not exists(uri):
            raise UsageError(f"{uri} does not exist")
        self._uri, self._embedded = uri.rstrip("/"), manifest.data.rstrip("/")
        (self._modality,) = manifest.modalities
        side = manifest.options.get("window")
        if type(side) is not int or not 1 <= side <= WINDOW_SIDE:
            raise UsageError(
                f"the embeddings state windows of {shortened(side)} pixels, not of 1 to "
                f"{WINDOW_SIDE}: embed the images again"
            )
        self._side = side
        # As `terrafm.data.rasters.bands.BandMatch` has it: "... (by their names): B02=1 B03=2".
        went = str(manifest.options["bands"]).partition("): ")[2].partition(";")[0]
        places = {band: int(place) for band, place in re.findall(r"(\w+)=(\d+)", went)}
        self._places = places
        self._is_whole = colour_bands(self._modality) <= set(places)
        self._survey = survey_of(manifest.options.get("pixels", {}))

    def preview(self, tile: dict[str, Any]) -> Preview | None:
        """See `Previews.preview`."""
        if not self._is_whole:
            return None
        uri = self._where(str(tile["source"]))
        sides = tile["window"]
        try:
            window = Window(sides["column"], sides["row"], sides["width"], sides["height"])
            if max(window.width, window.height) > self._side:
                raise ValueError(
                    f"tile {tile['tile_id']} is larger than the windows of {self._side} pixels"
                )
            with closing(OpenGeotiff(uri)) as image:
                stored, sample = image.read(window), image.sample()
        except (RasterioError, OSError, ValueError) as error:
            raise TerraFMError(f"cannot read image {uri}: {error}") from None
        modality = MODALITIES[self._modality]
        labels = ["-"] * stored.header.count
        for band, place in self._places.items():
            labels[place - 1] = band
        match = match_bands(labels, modality.name, "as embedded", uri)
        reader = SensorFiles(match, self._survey)
        # As it was embedded: what sticks out of the image is missing.
        stacked = np.full((modality.channels, self._side, self._side), np.nan, np.float32)
        height, width = stored.pixels.shape[1:]
        pixels = reader.physical(uri, stored, reader.decide(uri, sample))
        stacked[list(match.channels), :height, :width] = pixels
        return Preview(modality.name, colours(stacked, modality.name))

    def _where(self, source: str) -> str:
        """Where a file lies now that was embedded as `source`."""
        inside = source.removeprefix(self._embedded).lstrip("/")
        if not source.startswith(self._embedded):
            raise UsageError(f"{source} is none of the images in {self._embedded}")
        return join(self._uri, inside) if inside else self._uri
