"""Cells of a stranger's dataset: no code runs, no memory is shown, whatever their bytes say."""

import random
import sys

import numpy as np
import pytest

from terrafm.data.shards import writer
from terrafm.data.shards.codec import _CODECS, CODECS, decode, encode

BLOSC2 = CODECS["blosc2"]
# Codecs and filters that C-Blosc2 fetches from a Python module, with the byte that names them.
PLUGINS = {
    "codec openhtj2k": (22, 36, "blosc2_openhtj2k"),
    "codec grok": (22, 37, "blosc2_grok"),
    "codec openzl": (22, 38, "blosc2_openzl"),
}
USER_CODEC = 0xC0
GROUND = (np.arange(3 * 96 * 96) % 977).reshape(3, 96, 96).astype(np.uint16)


def with_bytes(cell, changes):
    changed = bytearray(cell)
    for at, value in changes.items():
        changed[at] = value
    return bytes(changed)


def names_plugin(cell, at, number):
    return with_bytes(cell, {2: cell[2] & 0x1F | USER_CODEC, at: number})


@pytest.fixture
def folder_with_modules(tmp_path, proof):
    """A working directory with the modules that a chunk can name; each leaves proof that it ran."""
    folder = tmp_path / "work"
    folder.mkdir()
    for *_, module in PLUGINS.values():
        code = f"import os\nos.makedirs({str(proof)!r}, exist_ok=True)\n"
        (folder / f"{module}.py").write_text(code)
    return folder


@pytest.fixture(params=PLUGINS.values(), ids=PLUGINS)
def dataset_that_runs_code(request, make_dataset, tmp_path, monkeypatch):
    """A dataset all of whose checksums hold, and whose cells name a plugin."""
    at, number, _ = request.param
    own = writer.encode
    monkeypatch.setattr(
        writer, "encode", lambda pixels, codec: names_plugin(own(pixels, codec), at, number)
    )
    return make_dataset(tmp_path / "dataset")


def test_the_library_alone_would_run_it(folder_with_modules, proof, monkeypatch):
    """What the other tests defend against is there: else they would prove nothing."""
    import blosc2

    monkeypatch.chdir(folder_with_modules)
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin", prepend=":")
    cell = names_plugin(encode(GROUND), *PLUGINS["codec grok"][:2])
    with pytest.raises(ValueError, match="Error while decompressing"):
        blosc2.decompress2(cell, dst=np.empty_like(GROUND))
    assert proof.is_dir()


def test_reading_a_tile_imports_nothing(
    dataset_that_runs_code, folder_with_modules, terrafm, proof, tmp_path
):
    code, _, errors = terrafm(
        "tile", dataset_that_runs_code, "tile_00", "--output", tmp_path / "out",
        folder=folder_with_modules,
    )  # fmt: skip
    assert code == 1, errors
    assert "Blosc2 chunk of another kind than TerraFM writes" in errors
    terrafm("verify", dataset_that_runs_code, folder=folder_with_modules)
    assert not proof.exists()


@pytest.mark.parametrize("at", [*range(4), *range(16, 32), "user codec"])
def test_only_the_codec_and_filter_that_we_write_are_decoded(at):
    cell = encode(GROUND)
    user = {2: cell[2] & 0x1F | USER_CODEC}
    for number in range(256):
        changed = with_bytes(cell, user | {22: number} if at == "user codec" else {at: number})
        if changed != cell:
            # Two forms that are ours say another length.
            with pytest.raises(ValueError, match=r"it is (a Blosc2 chunk of another|cut short)"):
                decode(changed, GROUND.shape, "uint16")


@pytest.mark.parametrize("special", range(2, 16))
def test_special_chunks_show_no_memory(special):
    cell = encode(np.zeros_like(GROUND))
    assert len(cell) == 32
    with pytest.raises(ValueError, match="of another kind than TerraFM writes"):
        decode(with_bytes(cell, {31: special << 4}), GROUND.shape, "uint16")


@pytest.mark.parametrize("size", [0, 31, 33, 2**31 - 1])
def test_a_cell_says_its_own_length(size):
    cell = bytearray(encode(GROUND))
    cell[12:16] = size.to_bytes(4, "little")
    with pytest.raises(ValueError, match="is cut short, or too long"):
        decode(bytes(cell), GROUND.shape, "uint16")


@pytest.mark.parametrize("codec", sorted(CODECS.values()))
def test_mutated_cells_are_refused_or_decode_to_what_they_say(codec):
    """5,000 of them: neither a crash, nor a byte that was in memory before."""
    generator = random.Random(20261129)
    noise = np.random.default_rng(0).integers(0, 60000, (2, 40, 40)).astype(np.uint16)
    pool = [encode(pixels, codec) for pixels in (noise, noise // 4000, noise * 0 + 7, noise * 0)]
    outcomes = set()
    for _ in range(5_000):
        cell = mutated(generator, generator.choice(pool), codec)
        found = []
        for fill in (0, 0xFFFF):
            pixels = np.full(noise.shape, fill, np.uint16)
            try:
                _CODECS[codec].decode_into(cell, pixels)
            except (RuntimeError, TypeError, ValueError):
                pixels = None
            found.append(pixels)
        assert (found[0] is None) == (found[1] is None)
        outcomes.add(found[0] is None)
        assert found[0] is None or np.array_equal(*found), cell.hex()
    assert outcomes == {True, False}


def mutated(generator, cell, codec):
    cell = bytearray(cell)
    for _ in range(generator.choice([1, 1, 2, 4])):
        at = generator.randrange(len(cell) if generator.random() < 0.5 else min(len(cell), 80))
        match generator.randrange(4):
            case 0:
                cell[at] = generator.randrange(256)
            case 1:
                cell[at] ^= 1 << generator.randrange(8)
            case 2:
                del cell[at : at + generator.randrange(1, 5)]
                cell = cell or bytearray(1)
            case 3:
                value = generator.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
                cell[at : at + 4] = value.to_bytes(4, "little")
    if codec == BLOSC2 and len(cell) >= 16:
        # Past the first check, which a length that does not fit would end.
        cell[12:16] = len(cell).to_bytes(4, "little")
    return bytes(cell)
