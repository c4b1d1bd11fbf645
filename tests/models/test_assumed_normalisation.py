"""What a user assumes of weights that state no normalisation, as the released ones."""

import pytest
import torch

import terrafm
from terrafm.errors import UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny").state_dict()


@pytest.fixture
def released(state, tmp_path):
    """A plain state dict, and nothing beside it."""
    torch.save({n: t for n, t in state.items() if "fusion" not in n}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


STATED = {
    "numbers": ({"s1": {"mean": -12.0, "std": 4.0}}, "s1 in dB, less -12, over 4", -12.0, 4.0),
    "by band": (
        {"s1": {"mean": [-12.0, -19.0], "std": [4.0, 5.0], "count": 9}},
        "s1 in dB, less -19 to -12, over 4 to 5", [-12.0, -19.0], [4.0, 5.0],
    ),
    "bounds": ({"s1": {"min": -30.0, "max": [0.0, -5.0]}}, "over 25 to 30", -30.0, [30.0, 25.0]),
}  # fmt: skip


@pytest.mark.parametrize("how", STATED)
def test_what_released_weights_are_assumed_to_expect_is_said(how, released, caplog):
    given, said, low, spread = STATED[how]
    model = terrafm.load_model("terrafm_tiny", released, normalisation=given)
    assert said in caplog.text
    assert len(caplog.records) == 1
    x = torch.linspace(-40, 5, 2 * 64).reshape(1, 2, 8, 8)
    expected = (x - torch.tensor(low).view(-1, 1, 1)) / torch.tensor(spread).view(-1, 1, 1)
    torch.testing.assert_close(model.contract.normalise(x, "s1"), expected)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"s3": {"mean": 0, "std": 1}}, "no modality 's3': s1"),
        ({"s1": {"mean": 0}}, "normalisation of s1: give mean and std, or min and max"),
        ({"s1": {"mean": [0, 0, 0], "std": 1}}, "3 numbers for 2 bands"),
        ({"s1": {"mean": "zero", "std": 1}}, "normalisation of s1: could not convert"),
        ({"s1": {"min": 1, "max": 1}}, "std above 0"),
    ],
)
def test_a_normalisation_that_is_none_is_one_line(given, complaint, released):
    with pytest.raises(UsageError, match=complaint) as told:
        terrafm.load_model("terrafm_tiny", released, normalisation=given)
    assert len(str(told.value).splitlines()) == 1


def test_weights_that_state_their_normalisation_take_no_other(state, tmp_path):
    contract = WeightsContract.build("terrafm_tiny", {"s1": {"mean": [0, 0], "std": [1, 1]}})
    save_safetensors(str(tmp_path / "w.safetensors"), state, contract)
    with pytest.raises(UsageError, match="states its normalisation: leave it out"):
        terrafm.load_model(
            "terrafm_tiny", tmp_path / "w.safetensors",
            normalisation={"s1": {"mean": 0, "std": 1}},
        )  # fmt: skip
