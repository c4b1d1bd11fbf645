"""Weights files: round trips, what they carry, and what is refused."""

import io
import json
import os
import pickle
import uuid

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import terrafm
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import (
    WeightsContract,
    infer_model_name,
    load_encoder,
    load_state,
    load_weights,
    save_released,
    save_safetensors,
    state_fingerprint,
)

STATISTICS = {
    name: {
        "bands": list(m.bands),
        "mean": [0.1 + i / 7 for i in range(m.channels)],
        "std": [0.3 + i / 3 for i in range(m.channels)],
    }
    for name, m in MODALITIES.items()
}
SAVE = {"safetensors": save_safetensors, "pth": save_released}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny", num_queries=3).state_dict()


@pytest.fixture(scope="module")
def contract():
    return WeightsContract.build(
        "terrafm_tiny", STATISTICS, image_size=64, dataset_fingerprint="f00", commit="abc"
    )


@pytest.fixture(params=SAVE)
def written(request, tmp_path, state, contract):
    uri = str(tmp_path / f"weights.{request.param}")
    SAVE[request.param](uri, state, contract)
    return uri


@pytest.mark.parametrize("folder", ["file", "memory"])
@pytest.mark.parametrize("suffix", SAVE)
def test_round_trip_is_bit_exact_at_any_uri(tmp_path, state, contract, suffix, folder):
    root = str(tmp_path) if folder == "file" else f"memory://{uuid.uuid4().hex}"
    uri = f"{root}/sub/weights.{suffix}"
    written = SAVE[suffix](uri, state, contract)
    assert written[0] == uri
    for source in (uri, f"{root}/sub"):  # a folder that holds one weights file will do
        loaded, read = load_weights(source)
        assert read == contract
        fusion = {n for n in state if n.startswith("patch_embed.fusion.")}
        assert set(loaded) == set(state) - (fusion if suffix == "pth" else set())
        for name, tensor in loaded.items():
            assert tensor.dtype == state[name].dtype
            assert torch.equal(tensor, state[name]), name
    model = terrafm.load_model("terrafm_tiny", weights=uri)
    assert not model.training
    assert model.contract == contract
    assert model.fusion_loaded == (suffix == "safetensors")


def test_files_of_the_same_weights_are_equal_byte_for_byte(tmp_path, state, contract):
    for suffix, save in SAVE.items():
        contents = set()
        for name in "abcdefgh":
            save(str(tmp_path / name / f"weights.{suffix}"), state, contract)
            contents.add((tmp_path / name / f"weights.{suffix}").read_bytes())
        assert len(contents) == 1


def test_a_path_object_and_a_name_without_contract_will_do(tmp_path, state):
    """Weights as they were released: a plain state dict and nothing beside it."""
    released = {n: t for n, t in state.items() if "fusion" not in n}
    for name in ("new.pth", "old.bin"):
        torch.save(released, tmp_path / name, _use_new_zipfile_serialization=name == "new.pth")
        loaded, contract = load_weights(tmp_path / name)
        assert contract is None
        assert all(torch.equal(loaded[n], t) for n, t in released.items())
        assert terrafm.load_model("terrafm_tiny", tmp_path / name).contract is None


def test_fusing_with_weights_that_have_no_fusion_parameters_says_so(tmp_path, state):
    torch.save({n: t for n, t in state.items() if "fusion" not in n}, tmp_path / "w.pth")
    model = terrafm.load_model("terrafm_tiny", weights=tmp_path / "w.pth")
    views = {"s1": torch.zeros(1, 2, 32, 32), "s2_l2a": torch.zeros(1, 12, 32, 32)}
    with pytest.warns(UserWarning, match="no fusion parameters"):
        model(views)


def test_the_contract_states_bands_units_and_normalisation(written, contract):
    _, read = load_weights(written)
    for name, modality in read.modalities.items():
        assert modality.bands == MODALITIES[name].bands
        assert modality.unit == MODALITIES[name].unit
        assert modality.storage_scale == MODALITIES[name].scale
        images = np.random.default_rng(0).normal(size=(2, len(modality.bands), 4, 4))
        images[0, 1, 2, 3] = np.nan
        mean, std = (np.array(STATISTICS[name][k])[:, None, None] for k in ("mean", "std"))
        expected = np.nan_to_num((images - mean) / std)
        np.testing.assert_allclose(read.normalise(torch.from_numpy(images), name), expected)
    with pytest.raises(ValueError, match=r"\(B, 2, H, W\)"):
        read.normalise(torch.zeros(1, 3, 4, 4), "s1")
    with pytest.raises(ValueError, match="'dem'"):
        read.normalise(torch.zeros(1, 3, 4, 4), "dem")
    assert (read.model, read.image_size, read.patch_size) == ("terrafm_tiny", 64, 16)
    assert (read.dataset_fingerprint, read.commit) == ("f00", "abc")
    assert read.terrafm_version == terrafm.__version__
    assert WeightsContract.from_json(read.to_json()) == contract


def refused(uri, message):
    for load in (load_weights, load_encoder):
        with pytest.raises(UsageError, match=message) as error:
            load(uri)
        assert "\n" not in str(error.value)
        assert str(uri) in str(error.value)


class Exploit:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("how", ["zip", "legacy", "raw", "inside", "protocol 0"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, how):
    victim = tmp_path / "pwned"
    exploit = Exploit(str(victim))
    uri = tmp_path / "weights.pth"
    if how in ("raw", "protocol 0"):
        uri.write_bytes(pickle.dumps(exploit, protocol=0 if how == "protocol 0" else None))
    else:
        held = {"cls_token": torch.zeros(1, 1, 96), "x": exploit} if how == "inside" else exploit
        torch.save(held, uri, _use_new_zipfile_serialization=how != "legacy")
    refused(uri, "refused|neither")
    assert not victim.exists()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 0.999))
def test_truncated_files_are_refused(written, tmp_path, share):
    with open(written, "rb") as file:
        content = file.read()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"weights .*cut\.pth") as error:
        load_weights(cut)
    assert "\n" not in str(error.value)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]))
def test_no_bytes_escape_as_another_error(tmp_path, content, start):
    uri = tmp_path / "noise.pth"
    uri.write_bytes(start + content)
    with pytest.raises(UsageError):
        load_weights(uri)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_flipped_byte_in_the_head_never_escapes_as_another_error(tmp_path, position, value):
    buffer = io.BytesIO()
    torch.save({"cls_token": torch.zeros(1, 1, 96), "norm.weight": torch.ones(96)}, buffer)
    for content in (
        buffer.getvalue(),
        safetensors.torch.save({"cls_token": torch.zeros(1, 1, 96)}),
    ):
        damaged = bytearray(content)
        damaged[position % len(damaged)] = value
        uri = tmp_path / "flipped"
        uri.write_bytes(bytes(damaged))
        try:
            load_weights(uri)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a harmless flip raises nothing


def test_a_folder_with_one_model_in_two_formats_will_do(tmp_path, state, contract):
    uri = save_safetensors(str(tmp_path / "tiny.safetensors"), state, contract)[0]
    save_released(str(tmp_path / "tiny.pth"), state, contract)
    assert load_weights(tmp_path)[0].keys() == load_weights(uri)[0].keys()
    save_released(str(tmp_path / "other.pth"), state, contract)
    refused(tmp_path, "it holds other.pth, tiny.pth, tiny.safetensors")


def test_files_that_are_not_there_are_named(tmp_path):
    refused(tmp_path / "missing.pth", "do not exist")
    refused("memory://nowhere/missing.safetensors", "do not exist")
    refused("nosuchprotocol://bucket/weights.pth", "cannot open")
    refused(tmp_path, "as terrafm export makes it of a checkpoint; it holds none")
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).touch()
    refused(tmp_path, "it holds a.pth, b.safetensors")


def test_contents_that_are_no_state_dict_are_named(tmp_path, state):
    uri = tmp_path / "weights.pth"
    for held, message in [
        ([torch.zeros(1)], "not a state dict"),
        ({}, "not a state dict"),
        ({"model": {"a": torch.ones(2)}}, "'model' is no tensor"),
        ({"cls_token": torch.zeros(1, 1, 96, dtype=torch.int32)}, "not a dense float tensor"),
        ({"cls_token": torch.full((1, 1, 96), float("nan"))}, "cls_token holds NaN"),
    ]:
        torch.save(held, uri)
        refused(uri, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias"), "norm.bias is missing"),
        (lambda s: s.pop("cls_token"), "not TerraFM weights"),
        (lambda s: s.pop("patch_embed.fusion.readout"), "fusion.readout is missing"),
        (lambda s: s.update({"head.weight": torch.zeros(3)}), "head.weight is unknown"),
        (
            lambda s: s.update({"pos_embed": torch.zeros(1, 37, 96)}),
            r"pos_embed is \(1, 37, 96\), the model needs \(1, 197, 96\)",
        ),
        (
            lambda s: s.update({"patch_embed.fusion.queries": torch.zeros(())}),
            r"fusion.queries is \(\)",
        ),
        (lambda s: s.update({"blocks.3.norm1.weight": torch.zeros(96)}), "96 and 4 blocks"),
    ],
)
def test_weights_of_another_shape_are_named(tmp_path, state, change, message):
    changed = dict(state)
    change(changed)
    uri = tmp_path / "weights.safetensors"
    uri.write_bytes(safetensors.torch.save(changed))
    with pytest.raises(UsageError, match=message) as error:
        load_encoder(uri)
    assert str(uri) in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_copied_when_weights_do_not_fit(state):
    encoder = build_encoder("terrafm_tiny")
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    other = {n: t + 1 for n, t in state.items() if "fusion" not in n}
    other["norm.bias"] = torch.zeros(5)
    with pytest.raises(UsageError, match=r"norm\.bias"):
        load_state(encoder, other)
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())


def test_weights_of_another_model_are_refused(written, tmp_path, state, contract):
    with pytest.raises(UsageError, match="holds terrafm_tiny weights, not terrafm_base"):
        terrafm.load_model("terrafm_base", weights=written)
    with pytest.raises(UsageError, match="unknown model 'terrafm_huge'"):
        terrafm.load_model("terrafm_huge", weights=written)
    wrong = contract.model_copy(update={"model": "terrafm_small"})
    uri = str(tmp_path / "wrong.safetensors")
    save_safetensors(uri, state, wrong)
    with pytest.raises(UsageError, match="contract is for terrafm_small"):
        load_encoder(uri)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["modalities"]["s1"].update(bands=["VH", "VV"]),
        lambda c: c["modalities"]["s1"].update(mean=[0.0]),
        lambda c: c["modalities"]["s1"].update(std=[0.0, 1.0]),
        lambda c: c.update(format="other"),
        lambda c: c.update(version=2),
        lambda c: c.pop("model"),
    ],
)
def test_a_broken_contract_is_refused(tmp_path, state, contract, change):
    uri = str(tmp_path / "weights.pth")
    _, beside = save_released(uri, state, contract)
    values = json.loads(contract.to_json())
    change(values)
    with open(beside, "w") as file:
        json.dump(values, file)
    with pytest.raises(UsageError, match=r"weights.json is broken") as error:
        load_weights(uri)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["terrafm_tiny", "terrafm_small", "terrafm_base", "terrafm_large"])
def test_the_model_is_recognised_by_its_shapes(name):
    with torch.device("meta"):
        assert infer_model_name(build_encoder(name).state_dict()) == name


def test_load_model_without_weights_is_a_fresh_encoder_in_eval_mode():
    model = terrafm.load_model("terrafm_tiny", weights=None)
    assert not model.training
    assert model(torch.zeros(1, 2, 32, 32), modality="s1").shape == (1, 96)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("model",), "../../elsewhere/weights"),
        (("model",), "a/b"),
        (("modalities", "s1", "unit"), "a line\nmore"),
    ],
)
def test_a_contract_names_no_file_elsewhere_and_its_units_are_words(contract, key, value):
    told = json.loads(contract.to_json())
    *parents, last = key
    place = told
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ValueError, match=r"model|unit"):
        WeightsContract.from_json(json.dumps(told))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"backbone.{k}": v for k, v in s.items()},
        lambda s: {f"teacher.{k}": v for k, v in s.items()},
        lambda s: {f"student.module._orig_mod.backbone.{k}": v for k, v in s.items()},
        lambda s: {f"model.encoder.encoder.{k}": v for k, v in s.items()},
        # DINO's, with a head beside the backbone.
        lambda s: (
            {f"module.backbone.{k}": v for k, v in s.items()}
            | {"module.head.mlp.0.weight": torch.ones(3, 3)}
        ),
        # A block that was compiled by itself.
        lambda s: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in s.items()},
        # Whole checkpoints of other trainers.
        lambda s: {"model": dict(s), "epoch": 3, "args": {"lr": 0.1}},
        lambda s: {
            "state_dict": {f"module.{k}": v for k, v in s.items()},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        },
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_names_may_have_prefixes(wrap, suffix, state, tmp_path):
    wrapped = wrap({name: tensor.clone() for name, tensor in state.items()})
    path = tmp_path / f"wrapped.{suffix}"
    if suffix == "pth":
        torch.save(wrapped, path)
    elif all(isinstance(tensor, torch.Tensor) for tensor in wrapped.values()):
        safetensors.torch.save_file(wrapped, path)
    else:
        pytest.skip("safetensors holds tensors only")
    found = load_encoder(str(path)).state_dict()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda s: {
                f"{n}.backbone.{k}": v for n in ("teacher", "student") for k, v in s.items()
            },
            r"several encoders, under student\.backbone\. and teacher\.backbone\.: save one",
        ),
        (
            lambda s: {f"module.{k}": v for k, v in s.items() if k != "norm.weight"},
            "parameter norm.weight is missing",
        ),
        (lambda s: {"vit.cls_token": torch.ones(1, 1, 7)}, "not TerraFM weights, width 7"),
        (lambda s: {"model": dict(s), "net": dict(s)}, "several encoders, under model. and net."),
    ],
)
def test_what_cannot_be_told_apart_is_one_line(wrap, message, state, tmp_path):
    path = tmp_path / "wrapped.pth"
    torch.save(wrap({name: tensor.clone() for name, tensor in state.items()}), path)
    with pytest.raises(UsageError, match=message) as caught:
        load_encoder(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["teacher", "student", "optimizer"])
def test_a_checkpoints_own_file_says_how_to_make_weights_of_it(name, checkpoint):
    with pytest.raises(UsageError, match="make weights of the checkpoint by terrafm export"):
        load_encoder(f"{checkpoint}/{name}.safetensors")


def test_a_dict_that_holds_itself_is_refused(state, tmp_path):
    held = {"cls_token": state["cls_token"]}
    held["again"] = held
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="no tensor"):
        load_encoder(str(tmp_path / "w.pth"))


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
@pytest.mark.parametrize("modality", ["s1", "s2_l2a"])
def test_integers_are_no_physical_values(dtype, modality, contract):
    images = torch.ones(1, MODALITIES[modality].channels, 4, 4).to(dtype)
    with pytest.raises(ValueError, match=r"are \w+: give (dB|reflectance) as float"):
        contract.normalise(images, modality)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_missing(dtype, missing, contract):
    images = torch.full((1, 2, 4, 4), -12.0, dtype=dtype)
    images[0, 0, 1, 2] = missing
    found = contract.normalise(images, "s1")
    assert found.dtype == dtype
    assert found[0, 0, 1, 2] == 0
    rest = torch.ones(4, 4, dtype=torch.bool)
    rest[1, 2] = False
    expected = (-12.0 - STATISTICS["s1"]["mean"][0]) / STATISTICS["s1"]["std"][0]
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 5e-3}.get(dtype, 1e-6)
    np.testing.assert_allclose(found[0, 0][rest].double(), expected, rtol=tolerance)


def test_released_weights_are_one_encoder_whoever_loads_them(state, tmp_path):
    """They have no fusion parameters: what stands in their place is no accident of the process."""
    released = {k: v.clone() for k, v in state.items() if ".fusion." not in k}
    torch.save(released, tmp_path / "released.pth")
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    first = load_encoder(str(tmp_path / "released.pth"))
    assert torch.rand(1) == drawn
    second = load_encoder(str(tmp_path / "released.pth"))
    assert state_fingerprint(first) == state_fingerprint(second)


@pytest.mark.parametrize("length", [0x380, 0x480, 0x4B50, 0x14B50])
def test_a_header_whose_length_begins_as_another_format_does_is_read(length, tmp_path):
    """One safetensors file in 32 begins with the byte of a pickle."""
    state = build_encoder("terrafm_tiny").state_dict()
    tensors = {"cls_token": state["cls_token"]}
    shortest = int.from_bytes(safetensors.torch.save(tensors, {"note": ""})[:8], "little")
    for spaces in range(length - shortest, length - shortest - 16, -1):
        content = safetensors.torch.save(tensors, {"note": " " * spaces})
        if int.from_bytes(content[:8], "little") == length:
            break
    assert content[:2] in (b"\x80\x03", b"\x80\x04", b"PK")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    found, contract = load_weights(path)
    assert list(found) == ["cls_token"]
    assert contract is None
