"""Real pixels repacked as SAFE, EOPF, a catalogue of COGs, TerraMesh: the same, to the number."""

import json

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import yaml
import zarr_shards
from eopf_products import write_eopf
from range_server import serving
from safe_products import GSD, ORDER, Product, footprint_of, write_safe
from test_safe_real import CITIES, SIZE, TILE, city
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


def at_10_m(pixels):
    """(13, H, W) of bands at their own resolutions, each pixel as often as it is large."""
    return np.stack([np.kron(pixels[band], np.ones((GSD[band] // 10,) * 2, pixels[band].dtype))
                     for band in ORDER])  # fmt: skip


def write_geotiff(path, stack, product):
    path.parent.mkdir(parents=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(stack), height=stack.shape[1], width=stack.shape[2],
        dtype=stack.dtype.name, crs=f"EPSG:{product.epsg}",
        transform=rasterio.Affine(10, 0, product.corner[0], 0, -10, product.corner[1]),
    ) as file:  # fmt: skip
        file.write(stack)
        for number, band in enumerate(ORDER, start=1):
            file.set_band_description(number, band)


def bands_by_place(uri):
    """(latitude, longitude, band) -> pixels of all tiles."""
    dataset = Dataset.open(uri)
    found = {}
    for row in range(len(dataset)):
        place = round(float(dataset.latitude[row]), 6), round(float(dataset.longitude[row]), 6)
        tile = dataset.read_tile(row)
        for group in dataset.groups:
            for band, pixels in zip(group.bands, tile[group.name], strict=True):
                found[*place, band] = pixels
    return found


def test_one_set_of_real_pixels_gives_the_same_tiles_out_of_every_form(
    tmp_path, realdata, worldcover_tile
):
    """A city's Level-1C: GeoTIFF of all bands, SAFE, EOPF, COGs on a server, a TerraMesh shard."""
    pixels, time, tile = city(realdata, "paris", 1)
    product = Product(pixels, level="L1C", time=time, tile=tile, baseline="0204", epsg=32631,
                      corner=CITIES["paris"])  # fmt: skip
    stack = at_10_m(pixels)
    write_geotiff(tmp_path / "geotiff/S2L1C/paris.tif", stack, product)
    write_safe(tmp_path / "safe", product)
    write_eopf(tmp_path / "eopf", product, chunk=90)
    (tmp_path / "stac/scene").mkdir(parents=True)
    write_catalogue(tmp_path / "stac", product)
    first_day = np.datetime64("2016-01-01", "ns")
    packed_sample = zarr_shards.sample(
        "S2L1C", stack[None].astype(np.int16), product.corner, product.epsg, time=first_day
    )
    write_shard(tmp_path / "terramesh/S2L1C/majortom_shard_000001.tar", {"a_0": packed_sample})
    cover = str(worldcover_tile("N48E000"))
    config = IngestConfig(workers=0, ocean_drop=0.0)
    found = {}
    with serving(tmp_path / "stac") as server:
        archives = {name: str(tmp_path / name) for name in ("geotiff", "safe", "eopf", "terramesh")}
        for name, uri in (archives | {"stac": f"{server.address}/catalog.json"}).items():
            out = str(tmp_path / f"out-{name}")
            ingest(name, uri, out, tile_size=TILE, config=config, worldcover=cover,
                   modalities=("s2_l1c",))  # fmt: skip
            found[name] = bands_by_place(out)
    files = found.pop("geotiff")
    assert len(files) == (SIZE // TILE) ** 2 * 12
    for name, stored in found.items():
        assert stored.keys() == files.keys(), name
        for key, values in stored.items():
            # Scenes keep 20 and 60 m; the file and TerraMesh have each such pixel several times.
            times = 1 if name == "terramesh" else GSD[key[-1]] // 10
            np.testing.assert_array_equal(values, files[key][::times, ::times])
    # The pixels of the city itself, of which none has an offset.
    for band in ("B02", "B05", "B09"):
        side = TILE * 10 // GSD[band]
        values = [v for (_, _, b), v in found["safe"].items() if b == band]
        expected = pixels[band]
        blocks = [expected[y : y + side, x : x + side]
                  for y in range(0, 2 * side, side) for x in range(0, 2 * side, side)]  # fmt: skip
        for block in blocks:
            assert sum(np.array_equal(block, value) for value in values) == 1
