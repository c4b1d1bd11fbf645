"""The encoder as Hugging Face's hub loads and saves it: config.json and model.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from terrafm.errors import UsageError
from terrafm.modalities import SENTINEL
from terrafm.models.encoder import ARCHITECTURES, Encoder
from terrafm.models.weights import (
    TRAINING_ONLY,
    WeightsContract,
    infer_model_name,
    save_safetensors,
)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
LIBRARY = "terrafm"
PAPER = "https://arxiv.org/abs/2506.06281"
TASK = "image-feature-extraction"
TAGS = ["earth-observation", "remote-sensing", "sentinel-1", "sentinel-2", "terrafm"]


class HubEncoder(
    Encoder,
    PyTorchModelHubMixin,
    library_name=LIBRARY,
    paper_url=PAPER,
    pipeline_tag=TASK,
    tags=list(TAGS),
    coders={
        WeightsContract: (
            lambda contract: contract.model_dump(mode="json"),
            WeightsContract.model_validate,
        )
    },
):
    """`Encoder` with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    Args:
        model: a key of `ARCHITECTURES`.
        num_queries: fusion queries per position (N_q).
        contract: what the weights expect of their input, if they say so.
    """

    def __init__(
        self, model: str, num_queries: int = 5, contract: WeightsContract | None = None
    ) -> None:
        if model not in ARCHITECTURES:
            raise UsageError(f"unknown model {model!r}: one of {', '.join(ARCHITECTURES)}")
        held = contract.modalities if contract else ()
        others = [modality for modality in held if modality not in SENTINEL]
        super().__init__(ARCHITECTURES[model], num_queries=num_queries, others=others)
        self.contract = contract

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> "HubEncoder":
        # The mixin's default leaves a parameter that the file lacks as it was initialised.
        loaded: HubEncoder = super()._from_pretrained(strict=strict, **arguments)
        return loaded

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.contract is None:
            super()._save_pretrained(save_directory)
        else:
            save_safetensors(str(save_directory / WEIGHTS_FILE), self.state_dict(), self.contract)


def hub_config(state: Mapping[str, Tensor], contract: WeightsContract) -> dict[str, Any]:
    """The arguments of `HubEncoder` that a state dict needs, JSON-able.

    Raises:
        UsageError: the state dict has no fusion parameters, or fits no model.
    """
    queries = state.get(TRAINING_ONLY + "queries")
    if queries is None:
        raise UsageError("the format hf needs the fusion parameters, which these weights lack")
    return {
        "model": infer_model_name(state),
        "num_queries": queries.shape[0],
        "contract": contract.model_dump(mode="json"),
    }
