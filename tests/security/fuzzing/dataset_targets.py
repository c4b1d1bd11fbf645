"""Targets of a dataset: manifest, index, cells, and what an unfinished ingest leaves."""

import io
import json
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
from mutations import change, flip, json_text, mutate_json, mutate_table
from samples import TESTS, Target, load_module, parquet_bytes, sha256, shown

REPORT = {
    "selection": {
        "cells": 3, "tiles_seen": 4, "tiles": 3, "water_only": 1, "water_only_dropped": 1,
        "tiles_over_limits": 1, "edge_pixels_dropped": 7, "tiles_quarantined": 0,
    },
    "products_left_out": {"s2_l2a": {"gap": 1, "clouds": 2}},
    "missing_bands": {"s1": {"VH": 2}},
    "class_counts_before_selection": {"10": 2, "80": 2},
    "worldcover_lacking": {"N00E015": 2},
    "decisions": {
        "s1": [{"unit": "dB", "offset": 0, "reason": "no tag", "products": 3}],
        "s2_l2a": [
            {"unit": "DN", "offset": 1000, "reason": "baseline", "products": 3, "margin": 9}
        ],
    },
    "quarantine": {"tiles": 0, "faults": 1, "by_modality": {"s1": 1}},
    "max_tiles": {
        "spread": ["land_cover"], "tiles_before": 4, "tiles_dropped": 1,
        "class_counts_before": {"10": 2, "80": 2},
    },
    "settings": {"source": "geotiff", "input": "archive"},
    "archive": {
        "pairing": {"s1": {"cells": 3, "within_1_days": 2}}, "repeated_cells": {"s1": 1},
    },
    "appended": [{
        "version": 2, "tiles": 1, "tiles_already_there": 1,
        "settings": {"source": "geotiff", "input": "more"},
        "archive": {"pairing": {"s1": {"cells": 1, "within_1_days": 1}}},
    }],
}  # fmt: skip


class _Dataset(Target):
    """A dataset of three tiles: manifest, index, entries, one shard."""

    def build(self):
        make = load_module(TESTS / "conftest.py").make_small_dataset
        make(self.folder / "dataset", classes=(10, 30, 80))
        path = self.folder / "dataset" / "manifest.json"
        manifest = json.loads(path.read_text()) | {"report": REPORT}
        for name in ("manifest.json", "manifest-1.json"):
            path.with_name(name).write_text(json.dumps(manifest))

    def load(self):
        from terrafm.config import load_config

        super().load()
        self.uri = str(self.folder / "dataset")
        self.config = load_config("demo", [])
        self.manifest = json.loads(self.sound["dataset/manifest.json"])
        self.index = pq.read_table(
            io.BytesIO(self.sound["dataset/" + self.manifest["index"]["name"]])
        )

    def with_index(self, table_or_bytes, **options):
        """Index and manifest that go together, as one who writes both makes them."""
        content, manifest = table_or_bytes, json.loads(json.dumps(self.manifest))
        if isinstance(content, pa.Table):
            manifest["index"]["tiles"] = manifest["tiles"] = content.num_rows
            content = parquet_bytes(content, **options)
        manifest["index"] |= {"bytes": len(content), "sha256": sha256(content)}
        text = json.dumps(manifest).encode()
        name = "dataset/" + manifest["index"]["name"]
        return {name: content, "dataset/manifest.json": text, "dataset/manifest-1.json": text}

    def read(self):
        from terrafm.data.inspect import inspect, render
        from terrafm.data.shards.dataset import Dataset
        from terrafm.data.shards.verify import render as render_faults
        from terrafm.data.shards.verify import verify
        from terrafm.errors import TerraFMError

        def use(reader, *arguments):
            try:
                return reader(*arguments)
            except TerraFMError as error:
                failed.append(error)

        failed = []
        dataset = use(Dataset.open, self.uri)
        if dataset is None:
            raise failed[0]
        use(lambda: shown(render(inspect(self.uri, self.config))))
        use(lambda: shown(render_faults(verify(self.uri, threads=1))))
        for row in range(min(len(dataset.rows), 3)):
            use(dataset.tile, row)
            use(dataset.histogram, row)
            use(dataset.read_tile, row)
        use(lambda: (dataset.places, dataset.regions, dataset.climate, dataset.sampled(0.5)))
        use(dataset.row_of, "tile_01")
        use(self._export, "tile_01")
        if failed:
            raise failed[0]

    def _export(self, tile):
        from terrafm.data.shards.tile_export import export_tile

        export_tile(self.uri, tile, str(self.folder / "out"))


class Manifest(_Dataset):
    share = 6

    def mutate(self, rng):
        text = mutate_json(self.sound["dataset/manifest.json"], rng)
        both = {"dataset/manifest.json": text, "dataset/manifest-1.json": text}
        return both if rng.random() < 0.7 else {"dataset/manifest.json": text}


class Index(_Dataset):
    share = 8

    def mutate(self, rng):
        name = "dataset/" + self.manifest["index"]["name"]
        if rng.random() < 0.35:
            return self.with_index(flip(self.sound[name], rng))
        options = {
            "compression": rng.choice(("zstd", "none", "snappy")),
            "write_statistics": rng.random() < 0.8,
        }
        return self.with_index(mutate_table(self.index, rng), **options)


class Cells(_Dataset):
    share = 6

    def mutate(self, rng):
        (name,) = (name for name in self.sound if name.startswith("dataset/shards/"))
        shard = bytearray(self.sound[name])
        if rng.random() < 0.2:
            return {name: flip(bytes(shard), rng)}
        group = rng.choice(self.manifest["groups"])
        column, row = f"{group['modality']}_{group['gsd']}m", rng.randrange(3)
        start, length = (
            self.index[f"{column}.{part}"][row].as_py() for part in ("offset", "length")
        )
        cell = flip(bytes(shard[start : start + length]), rng)
        # Longer cells lie at the end, where nothing is behind them.
        offset = start if len(cell) <= length else len(shard)
        shard[offset : offset + len(cell)] = cell
        index = self.index
        for part, value in (("offset", offset), ("length", len(cell)), ("checksum", crc32(cell))):
            at = index.column_names.index(f"{column}.{part}")
            values = index.column(at).to_pylist()
            values[row] = value
            index = index.set_column(
                at, index.schema.field(at), pa.array(values, index.schema.field(at).type)
            )
        return {name: bytes(shard), **self.with_index(index)}


class Entries(_Dataset):
    """What an unfinished ingest left of its shards."""

    share = 3

    def build(self):
        from terrafm.data.ingest.tally import Tally
        from terrafm.data.shards.entry import ShardEntry

        super().build()
        tally = Tally(classes_before={10: 2}, codes={10})
        tally.counts["cells"] = 3
        tally.left_out["s1", "gap"] = 1
        tally.missing_bands["s1", "VH"] = 1
        tally.lacking["N00E015"] = 1
        tally.decisions["s1", "dB", 0, "no tag"] = 3
        tally.margins["s1", "dB", 0, "no tag"] = 3
        tally.sums["s1"] = {"VV": (4, 8, 16), "VH": (4, 8, 17)}
        tally.fault("x", "s1", "file", "why", fatal=True)
        entry = ShardEntry.read(str(self.folder / "dataset"), "part-00000")
        entry.extra["tally"] = tally.to_json()
        entry.write(str(self.folder / "dataset"))

    def mutate(self, rng):
        from terrafm.storage.parquet import read_arrow

        (name,) = (name for name in self.sound if name.startswith("dataset/entries/"))
        content = self.sound[name]
        if rng.random() < 0.3:
            return {name: flip(content, rng)}
        table = read_arrow(content)
        head = json.loads(table.schema.metadata[b"entry"])
        if rng.random() < 0.4:
            table = mutate_table(table.replace_schema_metadata(None), rng)
        else:
            head = change(head, rng)
        sink = io.BytesIO()
        table = table.replace_schema_metadata({"entry": json_text(head, rng)})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return {name: sink.getvalue()}

    def read(self):
        from terrafm.data.ingest.append import _read_entries
        from terrafm.data.ingest.tally import Tally
        from terrafm.data.shards.manifest import read_manifest

        manifest = read_manifest(self.uri)
        for entry in _read_entries(self.uri, manifest):
            total = Tally()
            total.merge(Tally.from_json(entry.extra["tally"]))
            total.statistics(("s1",))
            json.dumps(total.summary())
            entry.rows.select(["tile_id", "land_cover", "climate", "latitude", "longitude"])
