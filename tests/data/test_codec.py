"""Cells: lossless, self-contained, the same bytes on every machine."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terrafm.data.shards.codec import CODECS, check_codec, checksum, decode, encode
from terrafm.errors import UsageError

ALL = sorted(CODECS.values())
GOLDEN = {
    ("blosc2:bitshuffle+lz4", "uint16"): (
        29902,
        "08f1b24e8490bff9e3cee53e0066fd662f3cbe036d5808c28f563ba7dcfd4cd6",
    ),
    ("blosc2:bitshuffle+lz4", "int16"): (
        29398,
        "2fdb917ea18d7feb5aac100530fb6c1c1ffd082ca0531ae5d178b4c1fe6f9748",
    ),
    ("pcodec:level8", "uint16"): (
        6477,
        "6fdaff520b1736091bf5e234c1edfbbefdbc31cee3021f221f8817fc5fdd47ac",
    ),
    ("pcodec:level8", "int16"): (
        6477,
        "903927c0a8fb7dd47c6fdaf296bc65e3d6860e1f9af099279dea1f631d786e14",
    ),
}


def ground(dtype):
    """Smooth ground with noise from integers alone: no machine draws it otherwise."""
    row, column = np.mgrid[0:96, 0:96].astype(np.int64)
    noise = (row * 7919 + column * 104729 + row * column * 31) % 61
    bands = [900 + 11 * row + 5 * column * (band + 1) + noise for band in range(3)]
    stack = np.stack(bands)
    return (stack - 2500 if dtype == "int16" else stack).astype(dtype)


pixels_of_any_kind = hnp.arrays(
    st.sampled_from([np.uint16, np.int16]),
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=40),
)


@pytest.mark.parametrize("codec", ALL)
@given(pixels=pixels_of_any_kind)
def test_lossless_and_deterministic(codec, pixels):
    cell = encode(pixels, codec)
    assert cell == encode(np.asfortranarray(pixels), codec)
    restored = decode(memoryview(cell), pixels.shape, pixels.dtype.str, codec)
    np.testing.assert_array_equal(restored, pixels)
    assert restored.dtype == pixels.dtype


@pytest.mark.parametrize("codec", ALL)
@given(pixels=pixels_of_any_kind, change=st.integers(-1, 1).filter(bool))
def test_a_cell_of_another_shape_is_refused(codec, pixels, change):
    bands, height, width = pixels.shape
    cell = encode(pixels, codec)
    with pytest.raises(ValueError, match="cell does not decode: it does not hold"):
        decode(cell, (bands, height, width + change), pixels.dtype.str, codec)


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 534, 534), (2, 89, 89)])
def test_extremes(codec, dtype, shape):
    limits = np.iinfo(dtype)
    alternating = np.resize(np.array([limits.min, limits.max], dtype), shape)
    noise = np.random.default_rng(0).integers(limits.min, limits.max + 1, shape, dtype=dtype)
    for pixels in (np.zeros(shape, dtype), np.full(shape, limits.min, dtype), alternating, noise):
        cell = encode(pixels, codec)
        np.testing.assert_array_equal(decode(cell, shape, dtype, codec), pixels)
        # Noise does not shrink, and must not grow by more than a frame around it.
        assert len(cell) < pixels.nbytes * 1.02 + 200


@pytest.mark.parametrize(("codec", "dtype"), GOLDEN)
def test_the_bytes_are_the_same_on_every_machine(codec, dtype):
    cell = encode(ground(dtype), codec)
    assert (len(cell), hashlib.sha256(cell).hexdigest()) == GOLDEN[codec, dtype]


@pytest.mark.parametrize("codec", ALL)
@given(data=st.data())
def test_damage_is_a_value_error_or_seen_by_the_checksum(codec, data):
    pixels = ground("uint16")
    cell = encode(pixels, codec)
    cut = data.draw(st.integers(0, len(cell) - 1))
    assert checksum(cell[:cut]) != checksum(cell)
    with pytest.raises(ValueError, match="cell does not decode"):
        decode(cell[:cut], pixels.shape, "uint16", codec)
    flipped = bytearray(cell)
    flipped[data.draw(st.integers(0, len(cell) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(bytes(flipped)) != checksum(cell)


@pytest.mark.parametrize("codec", ALL)
def test_a_cell_that_few_bytes_cannot_hold_takes_no_memory(codec):
    cell = encode(np.zeros((1, 8, 8), np.uint16), codec)
    for shape in [(1, 20_000, 25_000), (1, 2_000_000, 2_000_000), (4, 10**10, 10**10)]:
        with pytest.raises(ValueError, match=r"cell does not decode: .* bytes cannot hold the"):
            decode(cell, shape, "uint16", codec)


def test_32_bytes_of_blosc2_are_no_gigabyte():
    cell = bytearray(encode(np.zeros((1, 256, 256), np.uint16))[:32])
    cell[4:8] = (10**9).to_bytes(4, "little")
    with pytest.raises(ValueError, match="cell does not decode: 32 bytes cannot hold"):
        decode(bytes(cell), (1, 20_000, 25_000), "uint16")


def test_a_cell_that_does_not_fit_into_memory_does_not_decode(monkeypatch):
    def refuse(*_):
        raise MemoryError

    pixels = ground("uint16")
    cell = encode(pixels)
    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(ValueError, match=r"cell does not decode: .*not fit into memory"):
        decode(cell, pixels.shape, "uint16")


def test_pcodec_is_the_smaller_one():
    pixels = ground("uint16")
    assert len(encode(pixels, CODECS["pcodec"])) < len(encode(pixels, CODECS["blosc2"]))


def test_an_unknown_codec_is_one_clear_line():
    with pytest.raises(UsageError, match=r"manifest\.json names codec zip, this TerraFM reads"):
        check_codec("zip", "manifest.json")
    for call in (
        lambda: encode(ground("uint16"), "zip"),
        lambda: decode(b"", (1, 1, 1), "uint16", "zip"),
    ):
        with pytest.raises(UsageError, match=r"codec zip.*upgrade TerraFM"):
            call()
