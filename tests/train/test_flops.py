"""Counted operations against PyTorch's own counter, and against the known figures."""

import itertools
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from terrafm.config import Config, DataConfig, load_config
from terrafm.data.samples.loader import make_batches
from terrafm.data.samples.masks import PatchMasking
from terrafm.train.metrics.flops import expected_modalities, image_flops, named_peak, sample_flops
from terrafm.train.worker.setup import TrainingSetup

ROWS = 8
TINY = [
    f"train.global_batch={ROWS}",
    f"train.micro_batch={ROWS}",
    "train.steps=1",
    "head.num_prototypes=128",
    "head.hidden_dim=64",
    "head.bottleneck_dim=32",
    "data.global_size=64",
    "data.local_size=32",
    "data.local_crops=3",
]


@pytest.mark.parametrize(
    "views",
    [
        ["data.keep_probability=1"],
        ["data.modalities=[s2_l2a]"],
        ["data.fusion=false", "data.modalities=[s2_l1c, s2_l2a]"],
        # Of 16 patches, so that half of them are whole ones.
        [
            "data.modalities=[s2_l2a]",
            "loss.masked_patch_weight=1",
        ],
    ],
)
def test_the_counter_of_pytorch_counts_the_same(small_dataset, views, monkeypatch):
    half = {"ratio": (0.5, 0.5), "probability": 1.0}
    monkeypatch.setattr("terrafm.train.worker.setup.PatchMasking", partial(PatchMasking, **half))
    monkeypatch.setattr("terrafm.train.metrics.flops.MASK_RATIO", half["ratio"])
    monkeypatch.setattr("terrafm.train.metrics.flops.MASK_PROBABILITY", half["probability"])
    setup = TrainingSetup.open(load_config("demo", [*TINY, *views]), small_dataset)
    distillation = setup.plain_distillation()
    batches = list(itertools.islice(make_batches(**setup.stream_options(setup.layout(0, 1), 0)), 1))
    # Other kernels of attention recompute in the backward pass, which is no work of the model.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        distillation.forward_backward(batches, setup.schedules.at(0))
    expected = ROWS * sample_flops(setup.config).total
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("model", "figure"), [("terrafm_base", 0.526e12), ("terrafm_large", 1.675e12)]
)
def test_the_figures_of_base_and_large(model, figure):
    """One optical modality a view, 2 x 224 + 8 x 96, head apart, backward as twice the forward."""

    def forward(size):
        return image_flops(model, size, {"s2_l2a": 1.0}, 5, patch_tokens=True).forward

    student = 2 * forward(224) + 8 * forward(96)
    assert 2 * forward(224) + 3 * student == pytest.approx(figure, rel=2e-3)


def test_the_whole_step_of_base():
    flops = sample_flops(Config())
    # Less than that: the last block computes CLS tokens alone, and pixels need no gradient; more,
    # since views hold 1.6 modalities.
    assert flops.total == pytest.approx(0.492e12, rel=0.01)
    assert flops.backward == pytest.approx(2 * flops.forward, rel=0.05)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 1.0])
def test_expected_modalities_are_those_of_all_draws(keep):
    names = ("s1", "s2_l1c", "s2_l2a")
    share = 0.0
    for kept in itertools.product((0, 1), repeat=3):
        chance = 1.0
        for on in kept:
            chance *= keep if on else 1 - keep
        share += chance * (kept[0] if any(kept) else 1 / 3)
    data = DataConfig(modalities=names, keep_probability=keep)
    assert expected_modalities(data) == pytest.approx(dict.fromkeys(names, share))


def test_without_fusion_a_view_has_one_modality():
    shares = expected_modalities(DataConfig(fusion=False))
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("Tesla T4", 65e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("NVIDIA A10G", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert named_peak(name) == peak


def test_a_cpu_has_no_peak():
    from terrafm.train.metrics.flops import device_peak

    assert device_peak(torch.device("cpu")) is None
