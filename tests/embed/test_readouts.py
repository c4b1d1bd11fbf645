"""Embeddings of every readout against plain sums over the encoder's tokens."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.embed.schema import read_manifest
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import model_input
from terrafm.eval.features.readouts import Readout
from terrafm.models.weights import load_encoder

FUSED = ("s1", "s2_l2a")
WIDTH = 96


@pytest.fixture(scope="module")
def tokens(small_dataset, tiny_weights):
    """(11, 1 + 16, 96) normed tokens of all tiles, CLS first, one tile at a time."""
    encoder, images = load_encoder(tiny_weights), ShardTiles(small_dataset)
    normalisation = {
        m: {"mean": part.mean, "std": part.std} for m, part in encoder.contract.modalities.items()
    }
    rows = []
    with torch.inference_mode():
        for row in range(len(images.names)):
            image = model_input(images.read(row, FUSED), normalisation, 64)
            pixels = {name: x[None] for name, x in image.items()}
            # The last of the maps that the model gives one by one.
            patches = encoder.forward_features(pixels)[0][0].flatten(1).T
            rows.append(torch.cat([encoder(pixels), patches]).double().numpy())
    return np.stack(rows)


def by_hand(tokens, readout):
    patches = tokens[:, 1:]
    mean = patches.sum(1) / patches.shape[1]
    if readout == "cls":
        return tokens[:, 0]
    if readout == "mean":
        return mean
    squares = ((patches - mean[:, None]) ** 2).sum(1) / patches.shape[1]
    return np.concatenate([mean, np.log(np.sqrt(squares))], axis=1)


def vectors_of(output):
    """By id, which is the order of the dataset."""
    table = pq.read_table(output / "tiles").sort_by("tile_id")
    return np.stack(table["embedding"].to_numpy())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("readout", list(Readout))
def test_vectors_are_the_plain_moments(
    run, tokens, small_dataset, tiny_weights, tmp_path, readout, dense
):
    code, text, errors = run(
        "embed", "--weights", tiny_weights, "--data", small_dataset, "--output", tmp_path / "out",
        "--workers", "0", "--batch", "4", "--modality", "s1", "--modality", "s2_l2a",
        "--readout", readout.value, *(["--dense"] if dense else []),
    )  # fmt: skip
    assert code == 0, errors
    expected = by_hand(tokens, readout.value)
    found = vectors_of(tmp_path / "out")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Of other numbers than those of another readout.
    assert expected.std(0).max() > 0.01
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.readout, manifest.dim) == (readout, expected.shape[1])
    assert json.loads((tmp_path / "out" / "embedding.json").read_text())["readout"] == readout.value
    assert manifest.needs_standardising == (readout is Readout.MEAN_STD)
    assert (f"readout {readout.value}" in text) == (readout is not Readout.CLS)
    assert len(list((tmp_path / "out").glob("dense/*.tif"))) == (11 if dense else 0)


def test_a_windows_mean_is_that_of_its_patches(write_scene, tiny_weights, tmp_path):
    write_scene(tmp_path / "in" / "scene.tif", (64, 64))
    options = EmbedOptions(["s2_l2a"], workers=0, readout=Readout.MEAN, dense=True)
    embed(tiny_weights, tmp_path / "in", tmp_path / "out", options)
    with rasterio.open(tmp_path / "out" / "dense" / "scene.tif") as file:
        patches = file.read()
    assert patches.shape == (WIDTH, 4, 4)
    (found,) = vectors_of(tmp_path / "out")
    np.testing.assert_allclose(found, patches.mean((1, 2)), atol=1e-5)


def options_of(readout):
    return EmbedOptions(workers=0, readout=readout)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_readout_is_left_alone(
    refused, small_dataset, tiny_weights, tmp_path, finished
):
    embed(tiny_weights, small_dataset, tmp_path / "out", options_of(Readout.MEAN))
    if not finished:
        (tmp_path / "out" / "embedding.json").unlink()
    before = vectors_of(tmp_path / "out")
    for readout, words in (("cls", "(mean, not cls)"), ("mean+std", "(mean, not mean+std)")):
        line = refused(
            "embed", "--weights", tiny_weights, "--data", small_dataset, "--workers", "0",
            "--output", tmp_path / "out", "--readout", readout,
        )  # fmt: skip
        assert f"was begun with another readout {words}" in line
    np.testing.assert_array_equal(vectors_of(tmp_path / "out"), before)


def test_folders_from_before_there_was_a_choice_hold_cls_tokens(
    refused, small_dataset, tiny_weights, tmp_path
):
    output = tmp_path / "out"
    embed(tiny_weights, small_dataset, output, options_of(Readout.CLS))
    for name, inside in (("embedding.json", None), ("job.json", "depends_on")):
        document = json.loads((output / name).read_text())
        del (document if inside is None else document[inside])["readout"]
        (output / name).write_text(json.dumps(document))
    assert read_manifest(output).readout is Readout.CLS
    assert embed(tiny_weights, small_dataset, output, options_of(Readout.CLS)).already_complete
    line = refused(
        "embed", "--weights", tiny_weights, "--data", small_dataset, "--workers", "0",
        "--output", output, "--readout", "mean",
    )  # fmt: skip
    assert "was begun with another readout (cls, not mean)" in line


def test_a_readout_that_does_not_exist(run, small_dataset, tiny_weights, tmp_path):
    code, _, errors = run(
        "embed", "--weights", tiny_weights, "--data", small_dataset, "--output", tmp_path / "out",
        "--readout", "max",
    )  # fmt: skip
    assert code == 2
    assert "max" in errors
    assert not (tmp_path / "out").exists()
