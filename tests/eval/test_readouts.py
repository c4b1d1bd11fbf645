"""Readouts against plain sums over the tokens."""

import numpy as np
import pytest
import torch

from terrafm.eval.features.readouts import Readout
from terrafm.models.encoder import build_encoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny").eval()


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(1)
    return {"s2_l2a": torch.randn(3, 12, 48, 48, generator=generator)}


def test_readouts_are_the_tokens_moments(encoder, pixels):
    with torch.inference_mode():
        maps = encoder.forward_features(pixels)[0].numpy().astype(np.float64)
        found = {readout: readout.of(encoder, pixels).numpy() for readout in Readout}
        np.testing.assert_allclose(found[Readout.CLS], encoder(pixels).numpy(), atol=1e-6)
    tokens = maps.reshape(3, 96, 9)
    np.testing.assert_allclose(found[Readout.MEAN], tokens.mean(-1), atol=1e-5)
    deviation = np.log(np.sqrt(((tokens - tokens.mean(-1, keepdims=True)) ** 2).mean(-1)))
    np.testing.assert_allclose(found[Readout.MEAN_STD][:, :96], tokens.mean(-1), atol=1e-5)
    np.testing.assert_allclose(found[Readout.MEAN_STD][:, 96:], deviation, atol=1e-4)
    for readout, features in found.items():
        assert features.shape == (3, readout.width(encoder))
        assert features.dtype == np.float32


@pytest.mark.parametrize("readout", list(Readout))
def test_finished_rows_have_unit_length_and_missing_images_stay_missing(readout):
    rng = np.random.default_rng(0)
    features = rng.normal(3.0, rng.random(6) + 0.1, size=(20, 6)).astype(np.float32)
    features[4] = 0
    finished = readout.finished(features)
    assert not finished[4].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(finished, 4, 0), axis=1), 1, rtol=1e-6)
    there = np.delete(features, 4, 0).astype(np.float64)
    if readout is Readout.MEAN_STD:
        there = (there - there.mean(0)) / there.std(0)
    expected = there / np.linalg.norm(there, axis=1, keepdims=True)
    np.testing.assert_allclose(np.delete(finished, 4, 0), expected, atol=1e-5)


def test_a_uniform_image_has_finite_features(encoder):
    flat = {"s1": torch.zeros(2, 2, 32, 32)}
    for readout in Readout:
        with torch.inference_mode():
            features = readout.of(encoder, flat).numpy()
        assert np.isfinite(features).all()
        assert np.isfinite(readout.finished(features)).all()
