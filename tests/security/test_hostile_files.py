"""Files from strangers are data: none runs what its author wrote, or reads another file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.errors import RasterioError

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.geotiff import OpenGeotiff, read_whole
from terrafm.data.rasters.opening import open_raster
from terrafm.data.sources.raster import decode_geotiff, read_geotiff
from terrafm.errors import TerraFMError, UsageError
from terrafm.eval.features.cache import read_features
from terrafm.storage.parquet import TableFile
from terrafm.train.metrics.samples import trim_samples
from tuning.trials import TABLE_FILE, read_table


def test_listing_such_a_column_runs_code_where_nobody_looks(tmp_path, hostile, proof):
    pq.write_table(pa.table({"tile_id": hostile()}), tmp_path / "file")
    pq.read_table(tmp_path / "file").to_pylist()
    assert proof.is_dir()


@pytest.mark.parametrize("nested", ["flat", "list", "struct", "map", "list of structs"])
def test_such_a_column_is_refused_however_deep_it_lies(nested, tmp_path, hostile):
    values = hostile()
    structs = pa.StructArray.from_arrays([values], ["inside"])
    column = {
        "flat": lambda: values,
        "list": lambda: pa.ListArray.from_arrays([0, 1], values),
        "struct": lambda: structs,
        "map": lambda: pa.MapArray.from_arrays([0, 1], pa.array(["key"]), values),
        "list of structs": lambda: pa.ListArray.from_arrays([0, 1], structs),
    }[nested]()
    pq.write_table(pa.table({"tile_id": ["a"], "notes": column}), tmp_path / "file")
    with pytest.raises(pa.ArrowInvalid, match=r"column notes .*arrow_pickled_object.*run code"):
        TableFile(tmp_path / "file")


def test_types_of_arrow_itself_are_read(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 2)))
    codes = pa.array(["land", "sea", "land"]).dictionary_encode()
    pq.write_table(pa.table({"tensor": tensors}), tmp_path / "tensors")
    pq.write_table(pa.table({"class": codes}), tmp_path / "codes")
    assert TableFile(tmp_path / "tensors").read().num_rows == 1
    assert TableFile(tmp_path / "codes").read()["class"].to_pylist() == ["land", "sea", "land"]


VRT = """<VRTDataset rasterXSize="8" rasterYSize="8">
  <SRS>EPSG:32633</SRS><GeoTransform>0, 10, 0, 0, 0, -10</GeoTransform>
  <VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
    <SourceFilename>{}</SourceFilename><SourceBand>1</SourceBand>
  </SimpleSource></VRTRasterBand>
</VRTDataset>"""


@pytest.mark.parametrize(
    "read",
    [lambda path: decode_geotiff(path.read_bytes(), "here"), read_whole, open_raster],
    ids=["ingest", "evaluate", "embed"],
)
def test_a_geotiff_that_points_at_another_file_is_refused(read, tmp_path):
    profile = {"width": 8, "height": 8, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(tmp_path / "private.tif", "w", transform=transform, **profile) as file:
        file.write(np.full((1, 8, 8), 4242, np.uint16))
    path = tmp_path / "image.tif"
    path.write_text(VRT.format(tmp_path / "private.tif"))
    with rasterio.open(path) as opened:
        assert (opened.read() == 4242).all()
    with pytest.raises((BadCellError, UsageError, RasterioError)):
        read(path)


@pytest.mark.parametrize(
    "read",
    [read_geotiff, read_whole, OpenGeotiff],
    ids=["ingest", "evaluate", "embed"],
)
@pytest.mark.parametrize("kind", ["VRT", "other size", "damaged"])
def test_a_mask_beside_a_geotiff_is_its_mask_or_refused(read, kind, tmp_path):
    profile = {"width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    path, mask = tmp_path / "image.tif", tmp_path / "image.tif.msk"
    for name in (path, tmp_path / "private.tif"):
        with rasterio.open(name, "w", transform=transform, **profile) as file:
            file.write(np.full((1, 8, 8), 200, np.uint8))
    if kind == "VRT":
        mask.write_text(VRT.format(tmp_path / "private.tif").replace("UInt16", "Byte"))
    elif kind == "other size":
        with rasterio.open(
            mask, "w", driver="GTiff", transform=transform, **profile | {"width": 9}
        ) as file:
            file.write(np.full((1, 8, 9), 200, np.uint8))
    else:
        mask.write_bytes(b"II*\0 and then nothing")
    with pytest.raises((BadCellError, UsageError, RasterioError, ValueError)):
        read(str(path))


def test_features_are_refused(tmp_path, hostile, proof):
    pq.write_table(pa.table({"feature": hostile()}), tmp_path / "features")
    with pytest.raises(UsageError, match=r"features: column feature.*run code.*delete it"):
        read_features(str(tmp_path / "features"))
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "read"),
    [("samples.parquet", lambda run: trim_samples(run, 1)), (TABLE_FILE, read_table)],
)
def test_records_of_runs_and_sweeps_are_refused(name, read, tmp_path, hostile, proof):
    pq.write_table(pa.table({"step": hostile(), "trial": [0]}), tmp_path / name)
    with pytest.raises(TerraFMError, match=rf"{name}: column step .*run code"):
        read(str(tmp_path))
    assert not proof.exists()
