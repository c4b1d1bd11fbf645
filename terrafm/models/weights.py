"""Weights files: released names in and out, with the contract of their input.

Two formats, at any fsspec URI. `safetensors` holds every encoder parameter and the contract in
its metadata. `released` is a plain `.pth` state dict with exactly the released names, which the
released inference code loads strictly, and the contract in a `.json` beside it; it leaves out
the fusion parameters. A `.pth` is never unpickled beyond tensors.
"""

import hashlib
import io
import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from terrafm.errors import UsageError
from terrafm.modalities import SENTINEL
from terrafm.models.claims import check_weights, is_pickled
from terrafm.models.contract import WeightsContract as WeightsContract
from terrafm.models.encoder import ARCHITECTURES, Encoder, build_encoder
from terrafm.storage import (
    check_exists,
    check_json,
    exists,
    join,
    list_names,
    parse_json,
    read_bytes,
    read_range,
    resolve,
    write_bytes,
)
from terrafm.storage.faults import one_line
from terrafm.storage.limits import DOCUMENT_BYTES, WHOLE_FILE_BYTES

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")
STAC_SUFFIX = ".stac.json"
"""Of the STAC item beside weights, after the name of their file."""
TRAINING_ONLY = "patch_embed.fusion."
_QUERIES = TRAINING_ONLY + "queries"
_METADATA_KEY = "terrafm_contract"
# Every encoder has it, and what wraps one puts its name before it.
_SURE = "cls_token"
_COMPILED = "_orig_mod."
_PATCHES = re.compile(r"patch_embed\.conv2d_(\w+)\.weight")
_DEEPEST = 4
_MOST_NAMES = 1_000_000


def contract_metadata(contract: WeightsContract) -> dict[str, str]:
    """What the header of a safetensors file holds beside its tensors."""
    # One key only: the library writes several in random order, and the file must be a function
    # of the weights.
    return {_METADATA_KEY: contract.to_json()}


def save_safetensors(uri: str, state: Mapping[str, Tensor], contract: WeightsContract) -> list[str]:
    """Writes all parameters, with the contract in the metadata. Returns the URI written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(uri, safetensors.torch.save(tensors, contract_metadata(contract)))
    return [uri]


def save_released(
    uri: str, state: Mapping[str, Tensor], contract: WeightsContract, *, for_l2a: bool = False
) -> list[str]:
    """Writes the released names as a plain state dict, and the contract beside it.

    Args:
        uri: of the `.pth`.
        state: of the encoder.
        contract: what it expects of its input.
        for_l2a: the patch embedding of Sentinel-2 L2A also takes the place of L1C's, which is
            the one that the released inference file sends every image of 12 bands through. The
            weights, and their contract, then know no L1C.

    Returns:
        The URIs written: the `.pth` and the `.json`.
    """
    if for_l2a:
        state = {name: state[name.replace("s2_l1c", "s2_l2a")] for name in state}
        known = {name: m for name, m in contract.modalities.items() if name != "s2_l1c"}
        contract = contract.model_copy(update={"modalities": known})
    tensors = {
        # A view would drag its whole storage into the file.
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if not name.startswith(TRAINING_ONLY)
    }
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    beside = _contract_uri(uri)
    # The contract first: weights that can be seen always have theirs.
    write_bytes(beside, (contract.to_json() + "\n").encode())
    write_bytes(uri, buffer.getvalue())
    return [uri, beside]


def load_weights(
    uri: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], WeightsContract | None]:
    """Reads a weights file, ours or released, recognised by its content.

    Names may have prefixes of what wrapped the encoder where they were saved (`module.`,
    `_orig_mod.`, `backbone.`, `teacher.`, also stacked), and the state dict may lie in another
    one, beside optimizer and epoch: whatever ends in the encoder's own names is taken.

    Args:
        uri: a `.safetensors` or `.pth` file, or a folder that holds one of them.

    Returns:
        The state dict on the CPU, and its contract; None for weights that state none, whose
        band order and statistics the caller has to assume.

    Raises:
        UsageError: there is no such file, or it is unreadable, unsafe, not a state dict of
            finite numbers, holds two encoders, or its contract is broken.
    """
    uri = _find(os.fspath(uri))
    try:
        content = read_bytes(uri, WHOLE_FILE_BYTES)
        check_weights(content)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read weights {uri}: {one_line(error)}") from None
    if is_pickled(content):
        state = _unpickle(uri, content)
        beside = _contract_uri(uri)
        text: str | bytes | None = read_bytes(beside) if exists(beside) else None
        source = beside
    else:
        state, text = _read_safetensors(uri, content)
        source = uri
    state = _encoder_part(uri, state)
    _check_tensors(uri, state)
    try:
        check_json(text.encode() if isinstance(text, str) else text or b"")
        contract = None if text is None else WeightsContract.from_json(text)
    except ValueError as error:
        raise UsageError(f"the weights contract in {source} is broken: {error}") from None
    return state, contract


def read_contract(uri: str) -> WeightsContract | None:
    """The contract of a safetensors file, by its header alone; None where it states none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its header, or the contract in it, is broken.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    length = int.from_bytes(read_range(uri, 0, 8), "little")
    if length > DOCUMENT_BYTES:
        raise ValueError(f"{uri} is no safetensors file, or damaged")
    header = parse_json(read_range(uri, 8, 8 + length))
    about = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(about, dict):
        raise ValueError(f"{uri} is no safetensors file, or damaged")
    stated = about.get(_METADATA_KEY)
    return None if stated is None else WeightsContract.from_json(stated)


def load_state(
    encoder: Encoder,
    state: Mapping[str, Tensor],
    source: str = "weights",
    *,
    new_sensors: bool = False,
) -> None:
    """Copies weights into an encoder; only the fusion parameters may be missing, all of them.

    Args:
        encoder: receives them.
        state: released names, with or without the training-only ones.
        source: where they come from, for the message.
        new_sensors: a training begins with them: sensors of other packages that they do not know
            stay as they were drawn.

    Raises:
        UsageError: a name is missing or unknown, or a shape differs; the first is named.
    """
    own = encoder.state_dict()
    fusion = any(name.startswith(TRAINING_ONLY) for name in state)
    new = set(encoder.patch_embed.modalities) - {*SENTINEL, *held_modalities(state)}
    fresh = {
        f"patch_embed.{name}"
        for modality in (new if new_sensors else ())
        for name in (f"{modality}_embed", f"conv2d_{modality}.weight", f"conv2d_{modality}.bias")
    }
    for name, tensor in own.items():
        if name in fresh:
            continue
        if name not in state:
            if fusion or not name.startswith(TRAINING_ONLY):
                raise UsageError(f"{source}: parameter {name} is missing")
        elif state[name].shape != tensor.shape:
            raise UsageError(
                f"{source}: parameter {name} is {tuple(state[name].shape)}, "
                f"the model needs {tuple(tensor.shape)}"
            )
    unknown = [name for name in state if name not in own]
    if unknown:
        raise UsageError(f"{source}: parameter {unknown[0]} is unknown to the model")
    encoder.load_state_dict(dict(state), strict=False)
    encoder.fusion_loaded = fusion


def held_modalities(state: Mapping[str, Any]) -> list[str]:
    """Sensors of which a state dict has the patch embedding."""
    found = [_PATCHES.fullmatch(name) for name in state]
    return [match.group(1) for match in found if match]


def infer_model_name(state: Mapping[str, Tensor], source: str = "weights") -> str:
    """Which architecture a state dict belongs to, by its width and depth.

    Raises:
        UsageError: none of them.
    """
    token = state.get("cls_token")
    width = token.shape[-1] if token is not None and token.ndim else None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for name, architecture in ARCHITECTURES.items():
        if (width, depth) == (architecture.embed_dim, architecture.depth):
            return name
    known = ", ".join(f"{n} {a.embed_dim}/{a.depth}" for n, a in ARCHITECTURES.items())
    raise UsageError(
        f"{source}: not TerraFM weights, width {width} and {depth} blocks fit no model ({known})"
    )


def encoder_from_state(state: Mapping[str, Tensor], source: str = "weights") -> Encoder:
    """Builds the encoder that a state dict belongs to, in eval mode, and loads it.

    Raises:
        UsageError: as `infer_model_name` and `load_state`.
    """
    queries = state.get(_QUERIES)
    name = infer_model_name(state, source)
    # Released weights leave the fusion as it is drawn: the same by every process that loads them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sensors = held_modalities(state)
        encoder = (
            build_encoder(name, modalities=sensors)
            if queries is None
            else build_encoder(
                name, num_queries=queries.shape[0] if queries.ndim else 1, modalities=sensors
            )
        )
    load_state(encoder, state, source)
    return encoder.eval()


def load_encoder(uri: str | os.PathLike[str]) -> Encoder:
    """Builds the encoder that a weights file belongs to, in eval mode, and loads it.

    Its attribute `contract` is the file's contract, or None.

    Raises:
        UsageError: as `load_weights` and `load_state`, or a contract of another model.
    """
    uri = os.fspath(uri)
    state, contract = load_weights(uri)
    name = infer_model_name(state, uri)
    if contract is not None and contract.model != name:
        raise UsageError(f"{uri}: the contract is for {contract.model}, the weights are {name}")
    encoder = encoder_from_state(state, uri)
    encoder.contract = contract
    return encoder


def load_model(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    normalisation: Mapping[str, Mapping[str, Any]] | None = None,
) -> Encoder:
    """A TerraFM encoder in eval mode.

    Args:
        name: "terrafm_tiny", "terrafm_small", "terrafm_base" or "terrafm_large".
        weights: URI of a `.safetensors` or `.pth` file, released or own; None leaves the
            encoder with fresh random weights.
        normalisation: for weights that state none, as the released ones: what you assume of their
            input. Modality -> {"mean": ..., "std": ...}, as a dataset's manifest has them, or
            {"min": ..., "max": ...}, which become 0 and 1; a number, or one for each band, in
            reflectance or dB. The model's `contract` is made of it, and the log says so.

    Raises:
        UsageError: no such model, unreadable or unsafe weights, weights of another model, or a
            normalisation that is none, or of weights that state their own.
    """
    if name not in ARCHITECTURES or weights is None:
        if normalisation is not None:
            raise UsageError("normalisation says what weights expect: give weights as well")
        return build_encoder(name).eval()
    encoder = load_encoder(weights)
    held = infer_model_name(encoder.state_dict())
    if held != name:
        raise UsageError(f"{os.fspath(weights)} holds {held} weights, not {name}")
    if normalisation is not None:
        if encoder.contract is not None:
            raise UsageError(f"{os.fspath(weights)} states its normalisation: leave it out")
        encoder.contract = WeightsContract.assumed(name, normalisation)
        logger.warning(
            "%s states no normalisation; assumed, by normalisation=, %s",
            *(os.fspath(weights), encoder.contract.in_words()),
        )
    return encoder


def state_fingerprint(module: nn.Module) -> str:
    """SHA-256 over names and numbers of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def stac_item_of(uri: str | os.PathLike[str]) -> str | None:
    """URI of the STAC item that `terrafm export` writes beside weights; None where none lies there.

    Raises:
        UsageError: there are no weights.
    """
    item = _find(os.fspath(uri)) + STAC_SUFFIX
    return item if exists(item) else None


def _find(uri: str) -> str:
    """The weights file itself, where a folder was given."""
    check_exists("weights", uri)
    filesystem, path = resolve(uri)
    if not filesystem.isdir(path):
        return uri
    files = [name for name in list_names(uri) if name.endswith(WEIGHTS_SUFFIXES)]
    # One model in two formats, as the demo leaves it.
    if {name.rpartition(".")[0] + ".safetensors" for name in files} < set(files):
        files = [name for name in files if name.endswith(".safetensors")]
    if len(files) != 1:
        held = ", ".join(files) or "none"
        raise UsageError(
            f"folder {uri} must hold one .safetensors or .pth file, as terrafm export makes it of "
            f"a checkpoint; it holds {held}"
        )
    return join(uri, files[0])


def _contract_uri(uri: str) -> str:
    head, dot, tail = uri.rpartition(".")
    return (head if dot and "/" not in tail else uri) + ".json"


def _unpickle(uri: str, content: bytes) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # About odd pickle protocols, which either load or are refused below.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UsageError(
            f"weights {uri} are refused: they hold Python objects other than tensors, or are "
            "damaged; nothing in them was run. Save a plain state dict"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere in the parser
        raise UsageError(f"weights {uri} are damaged: {one_line(error)}") from None
    if not isinstance(state, dict) or not state:
        raise UsageError(f"weights {uri} are not a state dict of tensors")
    return state


def _read_safetensors(uri: str, content: bytes) -> tuple[dict[str, Tensor], str | None]:
    try:
        state = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UsageError(
            f"weights {uri} are neither safetensors nor a .pth state dict, or are damaged: "
            f"{one_line(error)}"
        ) from None
    return state, _metadata(content).get(_METADATA_KEY)


def _metadata(content: bytes) -> dict[str, str]:
    # The library reads metadata of files only; the header's layout is its published format:
    # 8 bytes of length, little-endian, then JSON. It has been validated by loading.
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata


def _encoder_part(uri: str, state: dict[str, Any]) -> dict[str, Any]:
    """What lies under the encoder's own names, whatever stands before them."""
    flat = dict(islice(_flattened(state), _MOST_NAMES + 1))
    if len(flat) > _MOST_NAMES:
        raise UsageError(f"weights {uri} name more than {_MOST_NAMES:,} parameters")
    prefixes = {name.removesuffix(_SURE) for name in flat if f".{name}".endswith(f".{_SURE}")}
    if not prefixes:
        return state
    if "" in prefixes:
        return flat
    if any(name.endswith("encoder." + _SURE) for name in flat) and _is_own(flat):
        raise UsageError(
            f"{uri} is a file of a checkpoint, with head and without a contract: make weights of "
            "the checkpoint by terrafm export"
        )
    if len(prefixes) > 1:
        raise UsageError(
            f"{uri} holds several encoders, under {' and '.join(sorted(prefixes))}: save one"
        )
    (prefix,) = prefixes
    return {name.removeprefix(prefix): flat[name] for name in flat if name.startswith(prefix)}


def _is_own(flat: Mapping[str, Any]) -> bool:
    """Of a network or an optimizer of a run's checkpoint."""
    head = {"head.last_layer.weight", "head.patch.weight"}
    return bool(head & flat.keys()) or any(name.startswith("exp_avg.") for name in flat)


def _flattened(
    state: Mapping[str, Any], above: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Names with those of the state dicts around them, without what torch.compile adds."""
    for name, value in state.items():
        whole = f"{above}{name}".replace(_COMPILED, "")
        # A stranger's file may hold a dict that holds itself.
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flattened(value, f"{whole}.", depth + 1)
        else:
            yield whole, value


def _check_tensors(uri: str, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UsageError(
                f"weights {uri} are not a plain state dict: {str(name)!r} is no tensor"
            )
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise UsageError(f"weights {uri}: parameter {name} is not a dense float tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UsageError(f"weights {uri}: parameter {name} repeats numbers, {tensor.numel():,} "
                             "of fewer")  # fmt: skip
        if not torch.isfinite(tensor).all():
            raise UsageError(f"weights {uri}: parameter {name} holds NaN or infinite values")
