"""TerraTorch takes the backbone as one of its own and trains with it."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
import yaml

from terrafm.export import export_checkpoint
from terrafm.models.weights import load_encoder, load_weights

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

    import terrafm.adapters.terratorch  # noqa: F401

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
        ignore_index=-1,
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


@pytest.fixture
def images(tmp_path):
    """Sentinel-2 digital numbers with masks, as GeoTIFFs."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        image = generator.integers(1, 9000, (12, 64, 64), dtype=np.uint16)
        mask = generator.integers(0, 3, (1, 64, 64), dtype=np.uint8)
        for name, pixels in (("image", image), ("mask", mask)):
            profile = {
                "count": len(pixels), "height": 64, "width": 64, "dtype": pixels.dtype,
                "crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
            }  # fmt: skip
            with rasterio.open(folder / f"{number}_{name}.tif", "w", **profile) as file:
                file.write(pixels)
    return folder


@pytest.fixture
def data_args(folder, images):
    tree = yaml.safe_load((folder / "terratorch.yaml").read_text())
    return {
        **tree["data"]["init_args"],
        "batch_size": 2, "num_workers": 0, "num_classes": 3,
        "train_data_root": str(images), "val_data_root": str(images),
        "test_data_root": str(images),
        "img_grep": "*_image.tif", "label_grep": "*_mask.tif",
    }  # fmt: skip


def test_terratorchs_data_module_normalises_as_the_contract_says(folder, data_args, images):
    from terratorch.datamodules import GenericNonGeoSegmentationDataModule

    module = GenericNonGeoSegmentationDataModule(**data_args)
    module.setup("fit")
    found = module.aug(next(iter(module.val_dataloader())))["image"]
    _, contract = load_weights(folder)
    files = [images / f"{number}_image.tif" for number in range(2)]
    numbers = torch.stack(
        [torch.from_numpy(rasterio.open(f).read().astype(np.float32)) for f in files]
    )
    expected = contract.normalise(numbers * 1e-4, "s2_l2a")
    assert float((found - expected).abs().max()) < 1e-5


def test_terratorchs_command_line_trains_it(folder, model_args, data_args, tmp_path):
    config = {
        "trainer": {
            "max_steps": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "limit_val_batches": 0, "default_root_dir": str(tmp_path / "fit"),
        },
        "data": {
            "class_path": "terratorch.datamodules.GenericNonGeoSegmentationDataModule",
            "init_args": data_args,
        },
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {
                "model_factory": "EncoderDecoderFactory",
                "model_args": {**model_args, "decoder": "FCNDecoder", "num_classes": 3},
                "ignore_index": -1,
            },
        },
    }  # fmt: skip
    (tmp_path / "yours.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "terratorch", "fit", "--config", "yours.yaml"),
            *("--custom_modules_path", folder / "terrafm_backbone"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "`max_steps=2` reached" in done.stdout + done.stderr
