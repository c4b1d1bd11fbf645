"""Hugging Face's layout: what stands in it, and that the hub's own mixin loads it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, PyTorchModelHubMixin

from terrafm.errors import UsageError
from terrafm.export import ExportOptions, export_checkpoint, export_weights
from terrafm.export.model_card import _model_index
from terrafm.models.encoder import build_encoder
from terrafm.models.hub import HubEncoder
from terrafm.models.weights import load_encoder


@pytest.fixture
def folder(tmp_path, checkpoint):
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"knn20": 0.5, "untrained": {"knn20": 0.25}, "n": 100}))
    export_checkpoint(
        checkpoint,
        str(tmp_path / "hub"),
        "hf",
        options=ExportOptions(license="cc-by-4.0", scores=str(scores)),
    )
    return tmp_path / "hub"


def test_the_mixin_loads_the_folder(folder):
    assert issubclass(HubEncoder, PyTorchModelHubMixin)
    model = HubEncoder.from_pretrained(folder)
    ours = load_encoder(folder)
    assert not model.training
    assert model.contract == ours.contract
    x = torch.randn(2, 2, 32, 48)
    pair = {"s1": x, "s2_l2a": torch.randn(2, 12, 32, 48)}
    with torch.inference_mode():
        assert torch.equal(model(x, "s1"), ours(x, "s1"))
        assert torch.equal(model(pair), ours(pair))


def test_what_the_mixin_saves_is_weights_with_a_contract(folder, tmp_path):
    model = HubEncoder.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = HubEncoder.from_pretrained(tmp_path / "again")
    assert again.contract == model.contract == load_encoder(tmp_path / "again").contract
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_other_fusion_queries_and_no_contract(tmp_path):
    model = HubEncoder("terrafm_tiny", num_queries=3)
    model.save_pretrained(tmp_path)
    again = HubEncoder.from_pretrained(tmp_path)
    assert again.patch_embed.fusion.queries.shape[0] == 3
    assert again.contract is None


def test_a_parameter_that_is_missing_is_not_passed_over(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["norm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        HubEncoder.from_pretrained(folder)


def test_the_card_has_data_recipe_scores_and_licence(folder, checkpoint):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "terrafm"
    assert "sentinel-2" in card.data.tags
    text = card.text
    record = json.loads(Path(checkpoint, "state.json").read_text())
    assert record["dataset"]["fingerprint"] in text
    # The place of the data is the trainer's own matter.
    assert record["dataset"]["uri"] not in text
    assert "| B8A | 0.27 | 0.07 |" in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["model"]["name"] == "terrafm_tiny"
    assert recipe["train"]["steps"] == 4
    assert "teacher after 2 steps" in text
    assert "| samples seen | 8 |" in text
    assert "| knn20 | 0.5000 |" in text
    assert "| untrained.knn20 | 0.2500 |" in text


def test_the_folder_is_evaluated_and_its_scores_go_into_the_card(
    run, folder, checkpoint, small_dataset, tmp_path
):
    code, out, _ = run("evaluate", "knn", "--weights", folder, "--data", small_dataset, "--json")
    assert code == 0
    (tmp_path / "knn.json").write_text(out)
    code, _, _ = run(
        *("export", "--checkpoint", checkpoint, "--output", folder, "--format", "hf"),
        *("--scores", tmp_path / "knn.json"),
    )
    assert code == 0
    scores = (folder / "README.md").read_text().split("## Scores")[1]
    found = json.loads(out)
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert [(one.dataset_name, one.metric_type) for one in results] == [("dataset", "accuracy")] * (
        2 * len(found["by_modality"])
    )
    assert results[0].metric_value == round(next(iter(found["by_modality"].values()))["knn20"], 4)
    assert f"| knn20 | {found['knn20']:.4f} |" in scores
    assert f"| mean_spectrum.knn5 | {found['mean_spectrum']['knn5']:.4f} |" in scores
    assert small_dataset not in scores


@pytest.mark.slow
def test_the_cards_lines_load_the_folder_it_lies_in(folder, fresh_interpreter):
    text = (folder / "README.md").read_text()
    lines = text.split("```python\n")[1].split("```")[0]
    assert fresh_interpreter(f"import os; os.chdir({str(folder)!r})\n{lines}")[-1] == "(1, 96)"


def test_what_is_not_known_is_said(tmp_path, teacher):
    encoder, contract = teacher
    export_weights(encoder.state_dict(), contract, str(tmp_path), "hf")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "unknown"
    assert "Not stated" in card.text
    assert "None were given" in card.text
    assert "did not come from a checkpoint" in card.text


def test_another_readme_is_not_overwritten(tmp_path, teacher):
    encoder, contract = teacher
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(UsageError, match="not a model card of terrafm export"):
        export_weights(encoder.state_dict(), contract, str(tmp_path), "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("accuracy", ["0.5", None, {}, [0.5], True, float("inf"), -0.5])
def test_the_card_s_index_has_accuracies_alone(accuracy):
    by_modality = {"s1": {"knn20": accuracy, "knn5": 0.25}, "s2_l2a": accuracy}
    index = _model_index("terrafm_tiny", {"data": "eurosat", "by_modality": by_modality})
    (result,) = index["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.25]


@pytest.mark.parametrize("content", [None, "not json", "[1]", "{}"])
def test_scores_that_cannot_be_read(tmp_path, teacher, content):
    encoder, contract = teacher
    scores = tmp_path / "scores.json"
    if content is not None:
        scores.write_text(content)
    with pytest.raises(UsageError, match=r"--scores .*scores\.json: \S"):
        export_weights(
            encoder.state_dict(),
            contract,
            str(tmp_path / "out"),
            "hf",
            ExportOptions(scores=str(scores)),
        )
    assert not (tmp_path / "out").exists()


def test_weights_without_fusion_are_refused(tmp_path, teacher):
    _, contract = teacher
    state = build_encoder("terrafm_tiny").state_dict()
    state = {k: v for k, v in state.items() if ".fusion." not in k}
    with pytest.raises(UsageError, match="needs the fusion parameters"):
        export_weights(state, contract, str(tmp_path / "out"), "hf")
