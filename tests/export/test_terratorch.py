"""TerraTorch takes the backbone as one of its own and trains with it."""

import sys

import pytest
import torch
import yaml

from terrafm.export import export_checkpoint
from terrafm.models.weights import load_encoder

pytest.importorskip("terratorch", reason="needs TerraTorch: pip install 'terrafm[terratorch]'")


@pytest.fixture
def folder(tmp_path, checkpoint):
    export_checkpoint(checkpoint, str(tmp_path / "out"), "terratorch")
    return tmp_path / "out"


@pytest.fixture
def model_args(folder):
    tree = yaml.safe_load((folder / "terratorch.yaml").read_text())
    return tree["model"]["init_args"]["model_args"]


@pytest.fixture
def registry():
    from terratorch.registry import BACKBONE_REGISTRY

    import terrafm.models.terratorch  # noqa: F401

    return BACKBONE_REGISTRY


def test_the_registry_builds_a_list_of_feature_maps(registry, folder):
    assert "terrafm_encoder" in registry
    backbone = registry.build("terrafm_encoder", ckpt_path=str(folder), out_indices=(0, 2))
    assert backbone.out_channels == [96, 96]
    encoder = load_encoder(folder)
    x = torch.randn(2, 12, 32, 48)
    with torch.inference_mode():
        expected = encoder.forward_features(x, "s2_l2a", (0, 2))
        for ours, map_ in zip(expected, backbone(x), strict=True):
            assert torch.equal(ours, map_)
        fused = backbone({"s1": x[:, :2], "s2_l2a": x})
    assert fused[1].shape == (2, 96, 2, 3)
    assert not torch.equal(fused[1], expected[1])


def test_what_cannot_be_built_says_why(registry, folder):
    with pytest.raises(ValueError, match="give ckpt_path, or pretrained=False"):
        registry.build("terrafm_encoder")
    with pytest.raises(ValueError, match=r"was trained on .*, not on s3"):
        registry.build("terrafm_encoder", ckpt_path=str(folder), modality="s3")
    fresh = registry.build("terrafm_encoder", pretrained=False, model="terrafm_small")
    assert fresh.out_indices == (3, 5, 7, 11)
    assert fresh.out_channels == [384] * 4


def test_terratorch_trains_it_for_two_steps(folder, model_args, registry, tmp_path):
    import lightning
    from terratorch.tasks import SemanticSegmentationTask

    assert model_args["backbone"] in registry
    task = SemanticSegmentationTask(
        model_factory="EncoderDecoderFactory",
        model_args={**model_args, "decoder": "FCNDecoder", "num_classes": 3},
        loss="ce",
        lr=1e-3,
    )
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "image": torch.randn(12, 64, 64, generator=generator),
            "mask": torch.randint(3, (64, 64), generator=generator),
        }
        for _ in range(4)
    ]
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, torch.utils.data.DataLoader(samples, batch_size=2))
    assert trainer.global_step == 2
    before = load_encoder(folder).state_dict()
    after = task.model.encoder.encoder.state_dict()
    for name in ("blocks.0.attn.qkv.weight", "patch_embed.conv2d_s2_l2a.weight"):
        assert after[name].isfinite().all()
        assert not torch.equal(after[name], before[name])
    # The other sensors are left alone.
    assert torch.equal(
        after["patch_embed.conv2d_s1.weight"], before["patch_embed.conv2d_s1.weight"]
    )


def test_the_custom_module_registers_the_backbone(folder, monkeypatch):
    from terratorch.cli_tools import import_custom_modules

    for name in ("terrafm.models.terratorch", "terrafm_backbone"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_custom_modules(folder / "terrafm_backbone")
    assert "terrafm.models.terratorch" in sys.modules
