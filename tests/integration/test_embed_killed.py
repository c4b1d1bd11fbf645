"""An embedding that is killed: given again, it has every row once."""

from collections import Counter
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from clusters import wait_until
from commands import kill_session, start

from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STATISTICS = {"s1": {"bands": ["VV", "VH"], "mean": [-14.0, -14.0], "std": [7.0, 7.0]}}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    contract = WeightsContract.build("terrafm_tiny", STATISTICS)
    uri = str(tmp_path / "tiny.safetensors")
    save_safetensors(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    return uri


@pytest.fixture
def two_thousand(tmp_path):
    """URI of a dataset of 2,000 tiles of 32 pixels."""
    from terrafm.data.shards.commit import commit_dataset
    from terrafm.data.shards.entry import TileRecord
    from terrafm.data.shards.manifest import CellGroup
    from terrafm.data.shards.writer import write_shard

    uri = str(tmp_path / "dataset")
    group = CellGroup("s1", 10, ("VV", "VH"), 32, 32)
    rng = np.random.default_rng(0)
    records = [
        TileRecord(
            tile_id=f"tile_{i:04d}",
            arrays={group.name: rng.integers(-2600, -200, group.shape).astype(np.int16)},
            land_cover=10,
            histogram={10: 1024},
            crs="EPSG:32633",
            transform=(10.0, 0.0, 5e5 + 320 * (i % 50), 0.0, -10.0, 1e4 + 320 * (i // 50)),
            latitude=0.1,
            longitude=15.0,
            products={"s1": {"product_id": "p", "time": "", "offset": 0}},
        )
        for i in range(2000)
    ]
    entries = [
        write_shard(uri, f"part-{k:05d}", records[500 * k : 500 * k + 500], [group])
        for k in range(4)
    ]
    commit_dataset(
        uri, entries, tile_size=32, gsd=10, groups=[group], statistics=STATISTICS,
        legend={10: "trees"}, report={},
    )  # fmt: skip
    return uri


def finished_parts(output):
    entries = output / "entries"
    return {path.stem for path in entries.glob("part-*.json")} if entries.is_dir() else set()


def kill_driver(process):
    """kill -9 of the command alone: its workers may be writing still."""
    process.kill()
    process.wait()


def test_killed_in_the_middle_of_2000_tiles_and_repeated_every_row_is_there_once(
    two_thousand, weights, tmp_path
):
    output, log = tmp_path / "out", tmp_path / "log"
    arguments = [
        "embed", "--weights", weights, "--data", two_thousand, "--output", output,
        "--batch", "8", "--workers", "2",
    ]  # fmt: skip
    reached = 0
    for kill in (kill_driver, kill_session):
        process = start(*arguments, log=log)
        aim = reached + 8
        try:
            wait_until(
                lambda n=aim: len(finished_parts(output)) >= n, "some parts", process, 500, log
            )
        finally:
            kill(process)
        reached = len(finished_parts(output))
        assert reached < 63
        assert not (output / "embedding.json").exists()
    # Rows wait beside each other until all are there: nothing that a reader looks for yet.
    assert not (output / "tiles").exists()
    parts = [output / "parts" / f"{name}.parquet" for name in finished_parts(output)]
    kept = sum(pq.read_metadata(part).num_rows for part in parts)
    # What a writer that was killed halfway leaves, and a file that no writer of ours leaves.
    (output / "tiles").mkdir()
    (output / "parts" / f".part-00001.parquet.{uuid4().hex}").write_bytes(b"PAR1")
    (output / "tiles" / f".part-00001.parquet.{uuid4().hex}").write_bytes(b"PAR1")
    (output / "tiles" / ".part-00001.parquet.0123").write_bytes(b"PAR1")
    process = start(*arguments, "--quiet", log=log)
    assert process.wait(timeout=1200) == 0, log.read_text()
    printed = log.read_text()
    # The results, and nothing of Ray's own.
    assert len(printed.strip().splitlines()) == 2, printed
    assert "2,000 embeddings of length 96" in printed
    assert f"{kept:,} rows were there from before" in printed
    names = pq.read_table(output / "tiles")["tile_id"].to_pylist()
    assert Counter(names) == Counter(f"tile_{i:04d}" for i in range(2000))
    assert sorted(path.name for path in (output / "tiles").iterdir()) == [
        ".part-00001.parquet.0123",
        "part-00000.parquet",
    ]
    assert sorted(path.name for path in output.iterdir()) == [
        "collection.json", "embedding.json", "items", "job.json", "tiles",
    ]  # fmt: skip
    # One row group along the curve.
    assert pq.read_metadata(output / "tiles" / "part-00000.parquet").num_row_groups == 1
