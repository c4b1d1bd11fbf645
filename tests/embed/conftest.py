"""Weights that fit the small dataset, and ways to look at what was written."""

import pytest
import torch

from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors


def statistics():
    """As the small dataset has them."""
    return {
        name: {
            "mean": [-14.0 if name == "s1" else 0.27] * m.channels,
            "std": [3.0 if name == "s1" else 0.07] * m.channels,
        }
        for name, m in MODALITIES.items()
    }


@pytest.fixture(scope="session")
def save_weights(tmp_path_factory):
    """Writes a tiny encoder's weights, with a contract as asked for; returns the URI."""

    def save(seed=5, image_size=64, stats=None, **changes):
        torch.manual_seed(seed)
        uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
        contract = WeightsContract.build(
            "terrafm_tiny", stats or statistics(), image_size=image_size
        )
        if changes:
            modalities = {
                name: part.model_copy(update=changes) for name, part in contract.modalities.items()
            }
            contract = contract.model_copy(update={"modalities": modalities})
        state = build_encoder("terrafm_tiny").state_dict()
        # Initialised small: without this all tokens would be almost alike.
        generator = torch.Generator().manual_seed(seed)
        for tensor in state.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
        save_safetensors(uri, state, contract)
        return uri

    return save


@pytest.fixture(scope="session")
def tiny_weights(save_weights):
    return save_weights()
