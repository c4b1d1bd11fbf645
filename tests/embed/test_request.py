"""What cannot be embedded is refused in one line, before any work."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch

from terrafm.embed import job, packing
from terrafm.modalities import MODALITIES
from terrafm.ray import parts


@pytest.fixture
def again(run, tiny_weights, small_dataset, tmp_path):
    """Embeds the small dataset in this process; returns what the command gave."""

    def command(*more, weights=tiny_weights, data=small_dataset, output=tmp_path / "out"):
        return run(
            "embed", "--weights", weights, "--data", data, "--output", output, "--workers", "0",
            *more,
        )  # fmt: skip

    return command


@pytest.fixture
def refuse(refused, tiny_weights, small_dataset, tmp_path):
    def command(*more, weights=tiny_weights, data=small_dataset, output=tmp_path / "out"):
        return refused(
            "embed", "--weights", weights, "--data", data, "--output", output, "--workers", "0",
            *more,
        )  # fmt: skip

    return command


def test_a_finished_folder_has_nothing_to_do(again, tmp_path):
    code, text, _ = again()
    assert code == 0
    assert "11 embeddings of length 96, terrafm_tiny, of s2_l2a" in text
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    code, text, _ = again("--batch", "3")
    assert code == 0
    assert "nothing to do" in text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert not (tmp_path / "out" / "entries").exists()


def test_a_folder_of_another_request_is_left_alone(
    again, refuse, save_weights, make_dataset, tmp_path
):
    assert again()[0] == 0
    other_model = save_weights(seed=6)
    assert "begun with another model" in refuse(weights=other_model)
    other_data = make_dataset(tmp_path / "other", seed=9)
    assert "begun with another data" in refuse(data=other_data)
    assert "begun with another size (64, not 32)" in refuse("--size", "32")
    assert "begun with another modalities" in refuse("--modality", "s1")
    assert "another --output" in refuse("--normalise", "set", "--dense")
    # An unfinished one too.
    (tmp_path / "out" / "embedding.json").unlink()
    assert "begun with another model" in refuse(weights=other_model)


def times(output):
    return {path.name: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}


def test_a_part_that_is_gone_or_damaged_is_made_again(again, tmp_path, monkeypatch):
    """An unfinished folder of three parts, one without its file, one without a whole entry."""
    monkeypatch.setattr(parts, "_LEAST_ROWS", 4)
    monkeypatch.setattr(job, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        again()
    output = tmp_path / "out"
    (output / "parts" / "part-00000.parquet").unlink()
    (output / "entries" / "part-00001.json").write_text("{")
    kept = (output / "parts" / "part-00002.parquet").stat().st_mtime_ns
    monkeypatch.undo()
    monkeypatch.setattr(parts, "_LEAST_ROWS", 4)
    seen = []
    pack = job._pack
    monkeypatch.setattr(job, "_pack", lambda *given: seen.append(times(output)) or pack(*given))
    code, text, _ = again()
    assert code == 0
    assert "3 rows were there from before" in text
    assert seen[0]["part-00002.parquet"] == kept
    assert [path.name for path in sorted(output.iterdir())] == [
        "collection.json", "embedding.json", "items", "job.json", "tiles",
    ]  # fmt: skip
    assert pq.read_table(output / "tiles").num_rows == 11


def test_files_that_are_put_together_already_stay(again, tmp_path, monkeypatch):
    """Killed after three files, one of which is gone and one without a whole entry."""
    monkeypatch.setattr(parts, "_LEAST_ROWS", 4)
    monkeypatch.setattr(packing, "ROW_GROUP_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_catalogue", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again("--quantise", "int8")
    output = tmp_path / "out"
    tiles = sorted((output / "tiles").iterdir())
    assert [path.name for path in tiles] == [f"part-{n:05d}.parquet" for n in range(3)]
    content = [path.read_bytes() for path in tiles]
    tiles[0].unlink()
    (output / "entries" / "part-00001.packed").write_text("{")
    before = [path.stat().st_mtime_ns for path in tiles[1:]]
    code, text, _ = again("--quantise", "int8")
    assert code == 0
    assert "11 rows were there from before" in text
    after = [path.stat().st_mtime_ns for path in tiles[1:]]
    assert (after[0] > before[0], after[1] == before[1]) == (True, True)
    # Whoever makes them, and however often.
    assert [path.read_bytes() for path in tiles] == content


def test_the_same_weights_elsewhere_are_the_same(again, tiny_weights, tmp_path):
    assert again()[0] == 0
    shutil.copy(tiny_weights, tmp_path / "copy.safetensors")
    code, text, _ = again(weights=tmp_path / "copy.safetensors")
    assert code == 0
    assert "nothing to do" in text


def test_a_folder_that_holds_something_else_is_left_alone(refuse, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "is not empty and holds no embeddings" in refuse()
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_damaged_job_is_said_to_be_one(again, refuse, tmp_path):
    assert again()[0] == 0
    (tmp_path / "out" / "job.json").write_text("{")
    assert "job.json is not readable" in refuse()


def test_data_that_is_not_there(refuse, tmp_path):
    assert "does not exist" in refuse(data=tmp_path / "nothing")
    assert "do not exist" in refuse(weights=tmp_path / "nothing")


def test_weights_that_do_not_know_the_modality(refuse, save_weights):
    statistics = {"s1": {"mean": [-14.0, -14.0], "std": [3.0, 3.0]}}
    only_radar = save_weights(stats=statistics)
    assert "modality s2_l2a is not in both" in refuse("--modality", "s2_l2a", weights=only_radar)


def test_a_contract_in_another_unit(refuse, save_weights):
    line = refuse(weights=save_weights(unit="digital number"))
    assert "wants s2_l2a in digital number, data comes in reflectance" in line


@pytest.mark.parametrize(
    ("mean", "std"), [(2700.0, 700.0), (-14.0, 0.1)], ids=["digital numbers", "dB"]
)
def test_a_normalisation_that_cannot_belong_to_the_data(refuse, again, save_weights, mean, std):
    statistics = {
        name: {"mean": [mean] * m.channels, "std": [std] * m.channels}
        for name, m in MODALITIES.items()
    }
    weights = save_weights(stats=statistics)
    assert "normalisation of s2_l2a does not fit" in refuse(weights=weights)
    assert again("--normalise", "set", weights=weights)[0] == 0


def test_weights_with_another_number_of_bands(refuse, tiny_weights, tmp_path):
    import safetensors
    import safetensors.torch

    with safetensors.safe_open(tiny_weights, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(n for n, t in state.items() if n.startswith("patch_embed") and t.ndim == 4
                and t.shape[1] == 12)  # fmt: skip
    state[name] = state[name][:, :10].contiguous()
    safetensors.torch.save_file(state, tmp_path / "ten.safetensors", metadata)
    assert f"parameter {name} is" in refuse(weights=tmp_path / "ten.safetensors")
    contract = json.loads(metadata["terrafm_contract"])
    contract["modalities"]["s2_l2a"]["bands"] = contract["modalities"]["s2_l2a"]["bands"][:10]
    text = {"terrafm_contract": json.dumps(contract)}
    safetensors.torch.save_file(state, tmp_path / "contract.safetensors", text)
    assert "contract" in refuse(weights=tmp_path / "contract.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refuse):
    assert "no GPU" in refuse("--device", "cuda")


def test_a_side_that_holds_no_whole_patches(refuse):
    assert "must be a multiple of the patch" in refuse("--size", "40")


@pytest.mark.parametrize("option", [("--window", "64"), ("--overlap", "8"), ("--bands", "B02")])
def test_windows_are_for_geotiffs(refuse, option):
    assert f"{option[0]} is for GeoTIFFs" in refuse(*option)
