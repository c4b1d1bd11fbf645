"""Real pixels repacked as a STAC catalogue of COGs and as TerraMesh: the same, to the number."""

import json

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import yaml
import zarr_shards
from range_server import serving
from safe_products import GSD, ORDER, Product, footprint_of
from test_safe_real import CITIES, SIZE, city
from test_stac import COG, write_tiff
from zarr_shards import packed, write_shard

from terrafm.config import IngestConfig
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.data.sources.stac import StacItems

FOLDERS = ("S1RTC", "S2L1C", "S2L2A", "LULC")
LEGEND = {"codes": {0: 60, 1: 80, 2: 10, 3: 90, 4: 40, 5: 50, 6: 60, 7: 70, 9: 30},
          "names": {30: "rangeland"}}  # fmt: skip


def repack(realdata, root):
    """Co-located places as shards of TerraMesh, in the types that the files have."""
    for folder in FOLDERS:
        samples = {}
        for path in sorted((realdata / "colocated" / folder).glob("*.tif")):
            with rasterio.open(path) as file:
                values, transform = file.read(), file.transform
                epsg = file.crs.to_epsg()
            rows, columns = values.shape[1:]
            corner = transform.c, transform.f
            longitude, latitude = zarr_shards.centre(rows, corner, epsg)
            samples[path.stem] = packed({
                "bands": values[None], "band": np.array(zarr_shards.LABELS[folder], "<U4"),
                "x": corner[0] + 5 + 10.0 * np.arange(columns),
                "y": corner[1] - 5 - 10.0 * np.arange(rows),
                "crs": np.array(epsg), "time": np.array([0]),
                "center_lon": np.array(longitude), "center_lat": np.array(latitude),
            })  # fmt: skip
        write_shard(root / folder / "majortom_shard_000001.tar", samples)


def test_terramesh_gives_the_tiles_of_the_files_that_it_is_made_of(tmp_path, realdata):
    repack(realdata, tmp_path / "mesh")
    (tmp_path / "legend.yaml").write_text(yaml.safe_dump(LEGEND))
    config = IngestConfig(workers=0, ocean_drop=0.0)
    legend = str(tmp_path / "legend.yaml")
    archives = {"geotiff": realdata / "colocated", "terramesh": tmp_path / "mesh"}
    found = {}
    for source, uri in archives.items():
        output = str(tmp_path / f"out-{source}")
        # TerraMesh's own legend is in the code; the files' own is told.
        told = {"legend_uri": legend} if source == "geotiff" else {}
        ingest(source, str(uri), output, tile_size=224, config=config, **told)
        found[source] = Dataset.open(output)
    one, other = found.values()
    assert len(one) == len(other) == 4
    assert one.tile_ids.tolist() == other.tile_ids.tolist()
    for row in range(4):
        tiles = one.read_tile(row), other.read_tile(row)
        assert set(tiles[0]) == set(tiles[1])
        for name in tiles[0]:
            np.testing.assert_array_equal(tiles[0][name], tiles[1][name])
        assert one.histogram(row) == other.histogram(row)


def write_catalogue(root, product, level="l1c"):
    """A static catalogue of COGs of one product, as the COG driver writes them."""
    assets = {}
    for band, pixels in product.pixels.items():
        name = f"{band}.tif"
        write_tiff(root / "plain" / name, pixels, GSD[band], product.epsg, product.corner)
        rasterio.shutil.copy(
            root / "plain" / name, root / "scene" / name, driver="COG", blocksize=128,
            compress="DEFLATE", predictor="YES", overviews="NONE",
        )  # fmt: skip
        assets[band] = {
            "href": name, "type": COG, "proj:shape": list(pixels.shape),
            "proj:transform": [GSD[band], 0, product.corner[0], 0, -GSD[band], product.corner[1]],
            "eo:bands": [{"name": band}],
        }  # fmt: skip
    date = product.time
    ring = [*footprint_of(product), footprint_of(product)[0]]
    entry = {
        "type": "Feature", "stac_version": "1.0.0", "id": product.name,
        "collection": f"sentinel-2-{level}",
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "assets": assets, "links": [],
        "properties": {
            "datetime": f"{date[:4]}-{date[4:6]}-{date[6:11]}:{date[11:13]}:{date[13:]}Z",
            "proj:epsg": product.epsg, "grid:code": f"MGRS-{product.tile}",
        },
    }  # fmt: skip
    (root / "scene/item.json").write_text(json.dumps(entry))
    links = [{"rel": "item", "href": "scene/item.json"}]
    (root / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "a", "links": links}))


def block_bytes(path):
    """Bytes of a TIFF's pixels as they are stored."""
    with rasterio.open(path) as file:
        down, across = (-(-side // 128) for side in file.shape)
        return sum(
            int(file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1))
            for x in range(across)
            for y in range(down)
        )


@pytest.mark.parametrize("grid", ["mgrs", "utm"])
def test_a_catalogue_of_cogs_gives_the_pixels_of_the_files_for_little_more(
    grid, tmp_path, realdata
):
    pixels, time, tile = city(realdata, "paris", 1)
    product = Product(pixels, level="L1C", time=time, tile=tile, epsg=32631,
                      corner=CITIES["paris"])  # fmt: skip
    (tmp_path / "scene").mkdir()
    write_catalogue(tmp_path, product)
    request = SceneRequest(tile_size=66, grid=grid, pixels=66 if grid == "utm" else 0)
    with serving(tmp_path) as server:
        source = StacItems(f"{server.address}/catalog.json", ("s2_l1c",), request)
        refs = source.cells()
        listed = len(server.sent)
        assert {path for path, _ in server.sent} == {"/catalog.json", "/scene/item.json"}
        seen = np.zeros((SIZE, SIZE), bool)
        for ref in refs:
            cell = source.read(ref)
            left = round(cell.transform[2] - product.corner[0]) // 10
            top = round(product.corner[1] - cell.transform[5]) // 10
            product_read = cell.products["s2_l1c"]
            bands = {**product_read.bands, "B10": product_read.cirrus}
            for band in ORDER:
                times = GSD[band] // 10
                rows, columns = bands[band].shape
                expected = np.zeros((rows, columns), np.uint16)
                y, x = top // times, left // times
                part = pixels[band][max(y, 0) : y + rows, max(x, 0) : x + columns]
                expected[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]] = part
                np.testing.assert_array_equal(bands[band], expected)
            seen[max(top, 0) : top + cell.shape[0], max(left, 0) : left + cell.shape[1]] = True
        # By the grid of UTM what lies at the edge is too little of a cell.
        assert seen.all() if grid == "mgrs" else seen.mean() > 0.7
        sent = sum(size for _, size in server.sent[listed:])
    needed = sum(block_bytes(path) for path in (tmp_path / "scene").glob("*.tif"))
    assert 0.5 * needed < sent <= 1.15 * needed
