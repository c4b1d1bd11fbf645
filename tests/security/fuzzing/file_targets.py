"""Targets that are neither dataset nor run: embeddings, weights, images, YAML, archives."""

import contextlib
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import torch
from mutations import flip, mutate_json, mutate_table, mutate_yaml
from run_targets import mutate_safetensors
from samples import TESTS, Target, load_module, parquet_bytes, sha256, shown

_CORNERS = (0.0, 1e308, float("nan"), float("inf"), -500.0)


class Embeddings(Target):
    """embedding.json, job.json, entries and parts, with the vectors of three tiles."""

    share = 10

    def build(self):
        from terrafm.data.shards.dataset import Dataset
        from terrafm.embed.rows import part_bytes
        from terrafm.embed.schema import EmbeddingManifest
        from terrafm.embed.source import DatasetTiles
        from terrafm.embed.work import Entry, write_part

        dataset = self.folder / "dataset"
        load_module(TESTS / "conftest.py").make_small_dataset(dataset, classes=(10, 30, 80))
        tiles, fingerprint = DatasetTiles(str(dataset)), Dataset.open(str(dataset)).fingerprint
        vectors = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
        out = self.folder / "embedded"
        content = part_bytes(
            [tiles.place(r) for r in range(3)], [("s1",)] * 3, vectors, ("ab" * 32, fingerprint)
        )
        part = write_part(str(out), "tiles", "part-00000", content, 3)
        manifest = EmbeddingManifest(
            rows=3, skipped=0, dim=16, model="terrafm_tiny", weights="w",
            model_fingerprint="ab" * 32, modalities=("s1",), parts=(part,), versions={"torch": "2"},
            data=str(dataset), data_kind="dataset", data_fingerprint=fingerprint,
            normalisation={"by": "contract", "s1": {"mean": [0.0], "std": [1.0]}},
            options={"size": 64, "dense": False}, legend={10: "class 10"},
        )  # fmt: skip
        (out / "embedding.json").write_text(manifest.to_json())
        (out / "entries").mkdir()
        (out / "entries" / "part-00000.json").write_text(Entry(part, 0).to_json())
        depends = {
            "version": 3,
            "model": "ab" * 32,
            "readout": "cls",
            "data": fingerprint,
            "rows_per_part": 4,
            "modalities": ["s1"],
        }
        (out / "job.json").write_text(
            json.dumps({"format": "terrafm-embedding-job", "depends_on": depends})
        )

    def load(self):
        super().load()
        self.uri = str(self.folder / "embedded")
        self.part = "embedded/tiles/part-00000.parquet"
        self.table = pq.read_table(io.BytesIO(self.sound[self.part]))
        self.depends = json.loads(self.sound["embedded/job.json"])["depends_on"]

    def mutate(self, rng):
        kind = rng.randrange(10)
        if kind < 3:
            return {
                "embedded/embedding.json": mutate_json(self.sound["embedded/embedding.json"], rng)
            }
        if kind == 3:
            return {"embedded/job.json": mutate_json(self.sound["embedded/job.json"], rng)}
        if kind == 4:
            name = "embedded/entries/part-00000.json"
            return {name: mutate_json(self.sound[name], rng)}
        if kind < 7:
            return self.with_part(flip(self.sound[self.part], rng), 3)
        if kind == 7:
            return self.with_part(*self._geometry(rng))
        table = mutate_table(self.table, rng)
        return self.with_part(
            parquet_bytes(table, write_statistics=rng.random() < 0.8), table.num_rows
        )

    def _geometry(self, rng):
        """Well-known binary of other kinds, nested, of endless counts, of odd numbers."""
        values = self.table["geometry"].to_pylist()
        kind = rng.choice((1, 2, 3, 4, 5, 6, 7, 15, 17, 1003, 3006, 2**31 + 3, 2**29 + 6, 99))
        head = struct.pack("<BII", 1, kind, 1)
        depth = rng.choice((1, 2, 10, 100, 1_000, 100_000))
        odd = (
            head * depth + values[0],
            struct.pack("<BII", 1, kind, 2**32 - 1),
            struct.pack("<BIII", 1, 3, 1, rng.choice((0, 1, 2**28, 2**32 - 1))),
            struct.pack("<BIII10d", 1, 3, 1, 5, *rng.choices(_CORNERS, k=10)),
            struct.pack("<BII", 1, 3, 0),
            b"", flip(values[0], rng),
        )  # fmt: skip
        values[rng.randrange(3)] = rng.choice(odd)
        at = self.table.column_names.index("geometry")
        table = self.table.set_column(
            at, self.table.schema.field(at), pa.array(values, pa.binary())
        )
        return parquet_bytes(table), 3

    def with_part(self, content, rows):
        manifest = json.loads(self.sound["embedded/embedding.json"])
        manifest["rows"] = manifest["parts"][0]["rows"] = rows
        manifest["parts"][0] |= {"bytes": len(content), "sha256": sha256(content)}
        return {self.part: content, "embedded/embedding.json": json.dumps(manifest).encode()}

    def read(self):
        from small_files import begin_again

        from terrafm.embed.work import Entry
        from terrafm.errors import TerraFMError
        from terrafm.search.embeddings import Embeddings
        from terrafm.search.previews import open_previews
        from terrafm.search.similar import find_similar, render

        failed = []

        def use(reader, *arguments, **options):
            try:
                return reader(*arguments, **options)
            except TerraFMError as error:
                failed.append(error)

        Entry.read(self.uri, "part-00000")
        use(begin_again, self.uri, self.depends)
        folder = use(Embeddings, self.uri)
        if folder is not None:
            with contextlib.suppress(TerraFMError):
                folder.vector("no such")
            for how in ({"tile": "tile_01"}, {"point": (15.0129, 0.086)}):
                result = use(find_similar, folder, **how)
                if result is not None:
                    shown(render(result))
                    use(
                        open_previews,
                        folder.manifest,
                        str(self.folder / "dataset"),
                        result["neighbours"],
                    )
        if failed:
            raise failed[0]


class Weights(Target):
    """Weights with their contract, as safetensors and as a state dict."""

    share = 10

    def build(self):
        from terrafm.modalities import MODALITIES
        from terrafm.models.weights import WeightsContract, save_released, save_safetensors

        state = {"cls_token": torch.zeros(1, 1, 192), "blocks.0.norm1.weight": torch.ones(192)}
        statistics = {
            n: {"mean": [0.3] * m.channels, "std": [0.1] * m.channels}
            for n, m in MODALITIES.items()
        }
        contract = WeightsContract.build("terrafm_tiny", statistics)
        save_safetensors(str(self.folder / "a" / "tiny.safetensors"), state, contract)
        save_released(str(self.folder / "b" / "tiny.pth"), state, contract)

    def mutate(self, rng):
        kind = rng.randrange(6)
        if kind < 4:
            return {"a/tiny.safetensors": mutate_safetensors(self.sound["a/tiny.safetensors"], rng)}
        if kind == 4:
            return {"b/tiny.pth": flip(self.sound["b/tiny.pth"], rng)}
        return {"b/tiny.json": mutate_json(self.sound["b/tiny.json"], rng)}

    def read(self):
        from small_files import All

        from terrafm.errors import TerraFMError
        from terrafm.models.weights import infer_model_name, load_weights

        failed, use = None, All()
        for uri in (
            str(self.folder / "a" / "tiny.safetensors"),
            str(self.folder / "b" / "tiny.pth"),
        ):
            try:
                state, contract = load_weights(uri)
                if contract is not None:
                    contract.normalise(
                        torch.zeros(1, 2, 4, 4), "s1"
                    ) if "s1" in contract.modalities else None
                    contract.to_json()
                # It may be of another model than there is, as the sample is.
                use(infer_model_name, state, uri)
            except TerraFMError as error:
                failed = error
        if failed is not None:
            raise failed


class GeoTiff(Target):
    """A GeoTIFF with names of bands, tags and nodata."""

    share = 18

    def build(self):
        rng = np.random.default_rng(0)
        profile = {
            "driver": "GTiff",
            "width": 40,
            "height": 32,
            "dtype": "float32",
            "crs": "EPSG:32633",
            "nodata": -999.0,
        }
        tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
        for name, bands, options in (
            ("plain", ("VV",), {}),
            ("tiled", ("VV", "VH"), tiles),
            ("lzw", ("VV", "VH"), {"compress": "lzw", "interleave": "band"}),
        ):
            count = len(bands)
            with rasterio.open(
                self.folder / f"{name}.tif",
                "w",
                transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
                count=count,
                **profile,
                **options,
            ) as file:
                file.write(rng.normal(-12, 2, (count, 32, 40)).astype(np.float32))
                for number, band in enumerate(bands, 1):
                    file.set_band_description(number, band)
                file.scales, file.offsets, file.units = (
                    (1.0,) * count,
                    (0.0,) * count,
                    ("dB",) * count,
                )
                file.update_tags(datetime="2021-06-01T10:00:00Z")

        (self.folder / "case.tif").write_bytes((self.folder / "plain.tif").read_bytes())

    def mutate(self, rng):
        name, other = rng.sample(("plain.tif", "tiled.tif", "lzw.tif"), 2)
        content = self.sound[name]
        if rng.random() < 0.5:
            # Heads and directories decide; pixels are pixels.
            edge = rng.choice((256, 600))
            return {"case.tif": flip(content[:edge], rng) + content[edge:]}
        return {"case.tif": flip(content, rng, self.sound[other])}

    def read(self):
        from small_files import read_geotiff

        read_geotiff(str(self.folder / "case.tif"))


class Configuration(Target):
    """YAML of a configuration, standing on another one."""

    share = 14

    def build(self):
        from terrafm.config import load_config
        from terrafm.config.yaml_text import dump_yaml

        tree = load_config("demo", []).model_dump(mode="json")
        (self.folder / "whole.yaml").write_text(dump_yaml(tree))
        (self.folder / "short.yaml").write_text(
            "base: whole.yaml\ntrain:\n  steps: 20\n  workers: [1, 2]\nloss:\n  koleo_weight: 0.1\n"
        )
        (self.folder / "legend.yaml").write_text(
            "codes: {1: 80, 2: 10, 3: 7}\nnames: {80: lakes and sea, 7: reeds}\n"
        )

    def mutate(self, rng):
        name = rng.choice(("short.yaml", "short.yaml", "whole.yaml", "legend.yaml"))
        return {name: mutate_yaml(self.sound[name], rng)}

    def read(self):
        from small_files import read_configuration

        read_configuration(self.folder)


_SCENE = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA"
_PUBLISHED = "https://huggingface.co/datasets/Major-TOM"


class Metadata(Target):
    """Metadata of archives: SSL4EO-S12, BigEarthNet, Major-TOM."""

    share = 4

    def build(self):
        encode = load_module(TESTS / "data" / "test_ssl4eo_s12.py").encode
        time = "20200604T054639"
        for folder, bands, meta in (("s1", ("VV", "VH"), {"system:index": "x"}),):
            path = (
                self.folder
                / "archive"
                / folder
                / "0000001"
                / f"S1A_IW_GRDH_1SDV_{time}_{time}_032904_03CFBA_D457"
            )
            path.mkdir(parents=True)
            for band in bands:
                (path / f"{band}.tif").write_bytes(encode(np.full((8, 8), -12.0, np.float32), 10))
            (path / "metadata.json").write_text(
                json.dumps(meta | {"CLOUDY_PIXEL_PERCENTAGE": 12.5, "PRODUCT_ID": "S1_X"})
            )
        patch = self.folder / "ben" / "S2A_MSIL2A_20170613T101031_0_45"
        patch.mkdir(parents=True)
        (patch / f"{patch.name}_labels_metadata.json").write_text(json.dumps({
            "labels": ["Pastures"], "acquisition_date": "2017-06-13 10:10:31",
            "tile_source": "S2A.SAFE",
            "corresponding_s2_patch": "x", "projection": "PROJCS"}))  # fmt: skip
        core = self.folder / "major_tom" / "Core-S2L2A"
        (core / "images").mkdir(parents=True)
        row = {"grid_cell": "0U_1R", "product_id": f"{_SCENE}_20230101T000000",
               "timestamp": "2022-07-06 08:56:11", "cloud_cover": 1.5, "nodata": 0.0,
               "parquet_url": f"{_PUBLISHED}/Core-S2L2A/resolve/main/images/part_00001.parquet",
               "parquet_row": 0}  # fmt: skip
        pq.write_table(
            pa.Table.from_pylist([row, row | {"grid_cell": "0U_2R", "parquet_row": 1}]),
            core / "metadata.parquet",
        )
        images = pa.table(
            {"product_id": ["a", "b"], "grid_cell": ["0U_1R", "0U_2R"], "B02": [b"x", b"y"]}
        )
        pq.write_table(images, core / "images" / "part_00001.parquet", row_group_size=1)

    def mutate(self, rng):
        names = [name for name in self.sound if name.endswith((".json", "metadata.parquet"))]
        name = rng.choice(names)
        if name.endswith(".json"):
            return {name: mutate_json(self.sound[name], rng)}
        if rng.random() < 0.4:
            return {name: flip(self.sound[name], rng)}
        return {name: parquet_bytes(mutate_table(pq.read_table(io.BytesIO(self.sound[name])), rng))}

    def read(self):
        from small_files import read_archives

        read_archives(self.folder)


class SmallRecords(Target):
    """A lease, the record of the cluster on this machine, --scores of a model card, features."""

    share = 3

    def build(self):
        holder = {
            "what": "terrafm ingest",
            "host": "h",
            "process": 1,
            "since": "2026",
            "machine": "m",
            "space": "s",
            "started": 1.5,
            "key": "k",
            "renewals": 0,
        }
        cluster = {
            "address": "127.0.0.1:6379",
            "dashboard_url": "http://127.0.0.1:8265",
            "token_path": "t",
            "scratch": "/tmp/x",
            "processes": [[99999999, 1.5]],
        }
        scores = {
            "knn20": 0.5, "untrained": {"knn20": 0.25, "seeds": [1, 2]}, "data": "a/b",
            "by_modality": {"s1": {"knn20": 0.5, "knn5": 0.25}},
        }  # fmt: skip
        for name, value in (("lease", holder), ("cluster.json", cluster), ("scores.json", scores)):
            (self.folder / name).write_text(json.dumps(value))
        flat = pa.array(np.arange(12, dtype=np.float32))
        table = pa.table(
            {"name": ["a", "b", "c"], "feature": pa.FixedSizeListArray.from_arrays(flat, 4)}
        )
        pq.write_table(table, self.folder / "features.parquet")
        np.save(self.folder / "000000000-000000003.npy", np.zeros((3, 4), np.float32))

    def mutate(self, rng):
        name = rng.choice(tuple(self.sound))
        content = self.sound[name]
        if name.endswith(".npy"):
            return {name: flip(content, rng)}
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            return {
                name: flip(content, rng)
                if rng.random() < 0.4
                else parquet_bytes(mutate_table(table, rng))
            }
        return {name: mutate_json(content, rng)}

    def read(self):
        from small_files import read_small

        read_small(self.folder)
