"""Sources of SAFE products as tests open them, and radar as HyP3 writes it."""

import numpy as np
from safe_products import write_radar

from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.request import SceneRequest, SceneWords

ALL = ("s1", "s2_l1c", "s2_l2a")
L2A, L1C = ("s2_l2a",), ("s2_l1c",)
HYP3 = "S1A_IW_{}_DVP_RTC10_G_g{}uned_11F3_{}.tif"


def request(tile_size=132, config=None, **words):
    return SceneRequest.parse(SceneWords(**words), tile_size, config)


def source(folder, modalities=ALL, tile_size=132, config=None, **words):
    return SafeArchive(str(folder), modalities, request(tile_size, config, **words))


def only_cell(folder, modalities=ALL, **options):
    opened = source(folder, modalities, **options)
    (ref,) = opened.cells()
    return opened.read(ref)


def power(seed, size=264, mean=0.1):
    return np.random.default_rng(seed).gamma(2, mean / 2, (size, size)).astype(np.float32)


def hyp3(folder, time, vv, vh=None, kind="p", **where):
    write_radar(folder / HYP3.format(time, kind, "VV"), vv, **where)
    write_radar(folder / HYP3.format(time, kind, "VH"), vv if vh is None else vh, **where)
