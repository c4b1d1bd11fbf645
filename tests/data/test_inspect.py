import io
import json

import numpy as np
import pytest
from rich.console import Console

from terrafm.config import load_config
from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.tally import Tally
from terrafm.data.inspect import inspect, render
from terrafm.data.land.landcover import legend
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.writer import write_shard
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)


@pytest.fixture
def dataset(geotiff_archive, place, tmp_path):
    """16 tiles in classes 10, 30 and 80, 9:4:3."""
    pixels = place(0, size=96, offset_l2a=1000)
    pixels["LULC"][:] = 10
    pixels["LULC"][0, 72:] = 30
    pixels["LULC"][0, 24:96, 72:] = 80
    pixels["LULC"][0, 72:, 72:] = 30
    pixels["LULC"][0, :24, 72:] = 80
    source = GeotiffFolder(str(geotiff_archive({"a": pixels})), ALL)
    layout = source.layout()
    groups = make_groups(layout.band_gsd, 10, 24)
    cutter = Cutter(24, 10, layout.shape, groups, ALL, 0.5, 0.0, 0, None)
    tally, extra = Tally(), {}
    records = cutter.tiles(source, source.cells()[0], tally)
    uri = str(tmp_path / "dataset")
    entry = write_shard(uri, "part-00000", records, groups, extra)
    settings = {"source": "geotiff", "input": "somewhere"}
    commit_dataset(
        uri,
        [entry],
        tile_size=24,
        gsd=10,
        groups=groups,
        statistics=tally.statistics(ALL),
        legend=legend(tally.codes),
        report={"settings": settings, "archive": {}, **tally.summary()},
    )
    return uri


def test_what_inspect_tells(dataset):
    found = inspect(dataset, load_config())
    assert json.loads(json.dumps(found))["class_counts"] == {"10": 9, "30": 4, "80": 3}
    assert (found["tiles"], found["tile_size"], found["gsd"]) == (16, 24, 10)
    assert found["modalities"] == list(ALL)
    assert found["tiles_with"] == dict.fromkeys(ALL, 16)
    # Shares proportional to the square roots 3, 2 and 3 ** 0.5 of the counts.
    weights = np.sqrt([9, 4, 3])
    expected = 16 * weights / weights.sum()
    assert list(found["resampled_class_counts"]) == [10, 30, 80]
    assert sum(found["resampled_class_counts"].values()) == 16
    assert np.abs(np.array(list(found["resampled_class_counts"].values())) - expected).max() < 1
    assert found["high_frequency_classes"] == [10]
    assert found["legend"][80] == "permanent water"
    assert found["decisions"]["s2_l2a"][0]["offset"] == 1000
    assert found["selection"]["water_only"] == 3
    assert found["quarantine"]["faults"] == 0
    assert len(found["fingerprint"]) == 64
    assert found["bytes"] > 0


def test_the_exponent_is_the_configured_one(dataset):
    for exponent, counts in ((0, {10: 9, 30: 4, 80: 3}), (1, {10: 6, 30: 5, 80: 5})):
        config = load_config(None, [f"data.resample_exponent={exponent}"])
        assert inspect(dataset, config)["resampled_class_counts"] == counts


def test_rendering(dataset):
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(inspect(dataset, load_config())))
    text = console.export_text()
    for part in ("16 tiles of 24 x 24 px", "tree cover *", "B8A", "1 x DN, offset 1000"):
        assert part in text


def test_no_dataset(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        inspect(str(tmp_path / "missing"), load_config())
