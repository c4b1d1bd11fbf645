"""A tile as GeoTIFFs: the same pixels at the same place, with values a map program understands."""

import json

import numpy as np
import pytest
import rasterio
import ray
from pyproj import Transformer

from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.tile_export import export_tile
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.ray.runtime import ensure_ray


def test_round_trip(small_dataset, tmp_path):
    dataset = Dataset.open(small_dataset)
    row = dataset.row_of("tile_05")
    written = export_tile(small_dataset, "tile_05", str(tmp_path))
    assert [path.rpartition("/")[2] for path in written] == [
        f"tile_05_{group.name}.tif" for group in dataset.groups
    ]
    a, _, left, _, e, top = dataset.tile(row)["transform"]
    pixels = dataset.read_tile(row)
    for group, path in zip(dataset.groups, written, strict=True):
        modality = MODALITIES[group.modality]
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(), pixels[group.name])
            assert file.dtypes[0] == group.dtype
            assert file.crs.to_string() == "EPSG:32633"
            assert file.res == (group.gsd, group.gsd)
            # The whole tile, whatever the resolution.
            assert tuple(file.bounds) == (left, top + 96 * e, left + 96 * a, top)
            assert file.descriptions == group.bands
            assert file.nodata == modality.nodata
            assert set(file.scales) == {modality.scale}
            assert set(file.units) == {modality.unit}
            physical = file.read(1, masked=True) * file.scales[0]
            np.testing.assert_allclose(
                physical.filled(np.nan), modality.to_physical(pixels[group.name][0]), rtol=1e-6
            )
            tags = file.tags()
            assert (tags["TILE_ID"], tags["LAND_COVER"]) == ("tile_05", "80")
            assert tags["LAND_COVER_NAME"] == "class 80"
            assert json.loads(tags["LAND_COVER_HISTOGRAM"]) == {"80": 96 * 96}
            assert json.loads(tags["PRODUCT"])["product_id"] == f"{group.modality}_5"
    again = tmp_path / "again"
    for first, second in zip(written, export_tile(small_dataset, "tile_05", again), strict=True):
        with open(first, "rb") as one, open(second, "rb") as two:
            assert one.read() == two.read()


@pytest.mark.slow
def test_real_places_lie_where_they_lay(shared_folder, tmp_path):
    """Exported Sentinel-2 pixels of real places are those of the archive, at their places."""
    ensure_ray(2)
    archive = shared_folder / "realdata" / "colocated"
    out = str(tmp_path / "out")
    ingest("geotiff", str(archive), out, tile_size=224)
    ray.shutdown()
    dataset = Dataset.open(out)
    for row, tile_id in enumerate(dataset.tile_ids):
        offset = dataset.tile(row)["products"]["s2_l2a"]["offset"]
        export_tile(out, tile_id, str(tmp_path / "tiles"))
        with (
            rasterio.open(tmp_path / "tiles" / f"{tile_id}_s2_l2a_10m.tif") as ours,
            rasterio.open(archive / "S2L2A" / f"{tile_id[:-4]}.tif") as theirs,
        ):
            assert ours.crs == theirs.crs
            assert ours.bounds == theirs.bounds
            expected = theirs.read().astype(int)
            expected = np.where(expected == 0, 0, np.maximum(expected - offset, 1))
            np.testing.assert_array_equal(ours.read(), expected)
            to_degrees = Transformer.from_crs(ours.crs, "EPSG:4326", always_xy=True)
            place = to_degrees.transform(*ours.xy(111.5, 111.5))
            assert place == pytest.approx((dataset.longitude[row], dataset.latitude[row]), abs=1e-9)


def test_an_unknown_tile_names_the_nearest(small_dataset, tmp_path):
    with pytest.raises(UsageError, match=r"has no tile 'tile_5'; the nearest ids are tile_"):
        export_tile(small_dataset, "tile_5", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
