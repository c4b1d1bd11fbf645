"""A folder in Hugging Face's layout: config.json, model.safetensors and the model card."""

from __future__ import annotations

import json

from terrafm.errors import UsageError
from terrafm.export.model_card import FRONT_MATTER, model_card
from terrafm.export.request import Export
from terrafm.models.hub import CONFIG_FILE, WEIGHTS_FILE, hub_config
from terrafm.models.weights import save_safetensors
from terrafm.storage import join, read_bytes, write_bytes

CARD_FILE = "README.md"


def write_hub_folder(export: Export) -> list[str]:
    """Writes the three files; the weights last, so that weights that can be seen are complete.

    Returns:
        URIs of the weights, the configuration and the card.

    Raises:
        UsageError: the folder holds a README.md of something else, the scores cannot be read, or
            the weights have no fusion parameters.
    """
    card = join(export.uri, CARD_FILE)
    _check_replaceable(card)
    config = json.dumps(hub_config(export.state, export.contract), indent=2, sort_keys=True)
    text = model_card(export)
    write_bytes(card, text.encode())
    write_bytes(join(export.uri, CONFIG_FILE), (config + "\n").encode())
    weights = save_safetensors(join(export.uri, WEIGHTS_FILE), export.state, export.contract)
    return [*weights, join(export.uri, CONFIG_FILE), card]


def _check_replaceable(card: str) -> None:
    try:
        present = read_bytes(card)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not present.startswith(FRONT_MATTER.encode()):
        raise UsageError(
            f"{card} is not a model card of terrafm export and would be overwritten: choose "
            "another --output"
        )
