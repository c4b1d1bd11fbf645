"""Pictures of what an encoder sees, against what its blocks compute."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terrafm.config import load_config
from terrafm.models.encoder import build_encoder
from terrafm.pictures.learned import _seen
from terrafm.report.kinds import Wanted, find_targets
from terrafm.report.learned import newest_choice
from terrafm.report.page import MOST_BYTES, Page, render
from terrafm.report.run_record import read_run


def test_attention_is_that_of_the_last_block():
    torch.manual_seed(0)
    encoder = build_encoder("terrafm_tiny").eval()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    pixels = torch.randn(2, 2, 64, 48)
    kept = []
    attention = encoder.blocks[-1].attn
    hook = attention.qkv.register_forward_hook(lambda *seen: kept.append(seen[-1]))
    with torch.inference_mode():
        (tokens,) = encoder.forward_features(pixels, "s1")
        hook.remove()
        seen, looked = _seen(encoder, pixels, "s1")
    assert np.allclose(seen, tokens.permute(0, 2, 3, 1).numpy())
    query, key, _ = kept[0].reshape(2, 13, 3, 3, 32).permute(2, 0, 3, 1, 4)
    # With the unit matrix for values, attention gives its own weights.
    weights = F.scaled_dot_product_attention(query, key, torch.eye(13).expand(2, 3, 13, 13))
    expected = weights[:, :, 0, 1:].mean(1)
    expected = expected / expected.sum(-1, keepdim=True)
    assert looked.shape == (2, 4, 3)
    assert np.allclose(looked, expected.reshape(2, 4, 3).numpy(), atol=1e-6)


@pytest.fixture
def trained(run_folder, checkpoint):
    """A run with a checkpoint."""
    run = run_folder("run", "data.modalities=[s1,s2_l2a]").started().lines(2)
    shutil.copytree(checkpoint, run.path / "checkpoints" / Path(checkpoint).name)
    return run


def page_of(run, data):
    (target,) = find_targets([str(run.path)])
    wanted = Wanted(load_config(None, []), pictures=True, data=data)
    return render(Page("Run", "", target.kind.sections([target], wanted)))


def test_a_page_shows_what_the_checkpoint_sees(trained, small_dataset):
    page = page_of(trained, small_dataset)
    assert ">What it learned</h2>" in page
    assert "The teacher after 2 steps" in page
    # Five classes, the neighbours of three, and a sample.
    assert page.count('class="picture"') == 9
    assert "by Sentinel-2 L2A, Sentinel-1, one below the other" in page
    assert len(page) < MOST_BYTES


def test_without_tiles_or_checkpoint_the_rest_of_the_page_is_there(trained, run_folder):
    page = page_of(trained, "/no/such")
    assert "No pictures: " in page
    assert "<h3>Loss (nats)</h3>" in page
    page = page_of(run_folder("empty").started().lines(2), "/no/such")
    assert "has no checkpoint yet" in page


def test_the_best_checkpoint_is_shown_where_there_is_one(run_folder):
    run = run_folder().started().lines(3).scores(20, 40)
    for step in (40, 60):
        (run.path / "checkpoints" / f"step_{step:08d}").mkdir()
    assert newest_choice(read_run(str(run.path), "run"))[0] == 40
    (run.path / "checkpoints" / "best.json").unlink()
    assert newest_choice(read_run(str(run.path), "run"))[0] == 60
