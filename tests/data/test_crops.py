import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terrafm.config import DataConfig
from terrafm.data.samples.crops import Cropper, Views, draw_views
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.manifest import CellGroup
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)
GOLDEN_BOX = [[19, 29, 60, 52], [0, 7, 89, 73], [45, 20, 38, 49]]
GOLDEN_KEYS = [6486588575527704428, -7389446161316272792]
GOLDEN_STUDENT = [[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]]
CONFIG = DataConfig(global_size=224, local_size=96)


def draw(n=200, config=CONFIG, seed=0, units=89, modalities=ALL, available=None, start=0):
    if available is None:
        available = np.ones((n, len(modalities)), dtype=bool)
    return draw_views(
        config,
        modalities,
        seed=seed,
        epochs=np.zeros(n, dtype=np.int64),
        positions=np.arange(start, start + n),
        available=available,
        units=units,
    )


def native_groups(tile_size, modality):
    sensor = MODALITIES[modality]
    return tuple(
        CellGroup(
            modality,
            gsd,
            tuple(b for b, g in zip(sensor.bands, sensor.gsd, strict=True) if g == gsd),
            tile_size * 10 // gsd,
            tile_size * 10 // gsd,
        )
        for gsd in sorted(set(sensor.gsd))
    )


def cropper_of(groups, config, fill=1000, seed=0):
    modalities = dict.fromkeys(g.modality for g in groups)
    unit = max(g.gsd for g in groups)
    return Cropper(
        groups=groups,
        units=groups[0].height * groups[0].gsd // unit,
        unit=unit,
        fill={m: (fill,) * MODALITIES[m].channels for m in modalities},
        config=config,
        seed=seed,
    )


def one_view(cropper, box, size, flip=False, turns=0):
    """Views of one sample with one global crop of all modalities in a chosen box."""
    names = cropper.modalities
    every = np.ones((1, 1, len(names)), dtype=bool)
    return Views(
        modalities=names,
        sizes=np.array([size]),
        box=np.array([[box]]),
        flip=np.array([[flip]]),
        turns=np.array([[turns]]),
        teacher=every,
        student=every,
        drop_path_key=np.zeros((1, 1), dtype=np.int64),
        other_date=np.zeros((1, 1), dtype=bool),
    )


def cut(cropper, pixels, views, row=0):
    """Crops of one sample: (view, modality) -> (C, S, S)."""
    out = np.empty(views.pixels, dtype=np.uint16)
    cropper.crop(pixels, views, row, out)
    crops = {}
    for view, size in enumerate(views.sizes.tolist()):
        for m, name in enumerate(views.modalities):
            if views.drawn[row, view, m]:
                end = views.ends[row, view, m]
                start = end - MODALITIES[name].channels * size**2
                crop = out[start:end].view(MODALITIES[name].dtype).reshape(-1, size, size)
                crops[view, name] = crop
    return crops


def resize_reference(plane, size):
    """Area averaging along an axis that shrinks, bilinear along one that grows; float64."""
    for axis in (0, 1):
        plane = np.moveaxis(plane.astype(np.float64), axis, 0)
        n = len(plane)
        if n >= size:
            edges = np.linspace(0, n, size + 1)
            total = np.concatenate([np.zeros((1, plane.shape[1])), np.cumsum(plane, axis=0)])
            whole = np.minimum(edges.astype(int), n - 1)
            at_edges = total[whole] + (edges - whole)[:, None] * plane[whole]
            plane = np.diff(at_edges, axis=0) * size / n
        else:
            tensor = torch.from_numpy(plane)[None, None]
            plane = torch.nn.functional.interpolate(
                tensor, (size, plane.shape[1]), mode="bilinear", align_corners=False
            )[0, 0].numpy()
        plane = np.moveaxis(plane, 0, axis)
    return plane


# What is drawn


def test_a_view_depends_on_seed_epoch_position_and_its_number_only():
    whole = draw(40)
    part = draw(7, start=11)
    fewer_views = draw(40, config=CONFIG.model_copy(update={"local_crops": 3}))
    for name in ("box", "flip", "turns", "student", "drop_path_key"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[11:18])
        np.testing.assert_array_equal(getattr(fewer_views, name), getattr(whole, name)[:, :5])
    np.testing.assert_array_equal(part.teacher, whole.teacher[11:18])
    assert (draw(40, seed=1).drop_path_key != whole.drop_path_key).all()
    assert len(np.unique(whole.drop_path_key)) == whole.drop_path_key.size


def test_draws_are_the_same_on_every_machine():
    views = draw(1, start=5)
    assert views.box[0, :3].tolist() == GOLDEN_BOX
    assert views.drop_path_key[0, :2].tolist() == GOLDEN_KEYS
    assert views.student[0, :4].astype(int).tolist() == GOLDEN_STUDENT


def test_scale_aspect_and_place():
    n, units = 3000, 89
    views = draw(n, units=units)
    top, left, height, width = np.moveaxis(views.box, -1, 0)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= units).all()
    assert (left + width <= units).all()
    for part, (low, high) in ((np.s_[:, :2], (0.25, 1.0)), (np.s_[:, 2:], (0.05, 0.25))):
        h, w = height[part] / units, width[part] / units
        half = 0.5 / units
        assert ((h + half) * (w + half) >= low).mean() > 0.93  # clipped at the tile's side
        assert ((h - half) * (w - half) <= high).all()
        free = (h < 1) & (w < 1)
        assert ((h + half) * (w + half) >= low)[free].all()
        assert ((w - half) / (h + half) <= 4 / 3)[free].all()
        assert ((w + half) / (h - half) >= 3 / 4)[free].all()
        area = (h * w)[free]
        assert area.max() - area.min() > 0.7 * (high - low)
    # Both ends of the tile are reached, and corners are uniform over what fits.
    assert ((top == 0) & (height < units)).any()
    assert ((top + height == units) & (height < units)).any()
    place = (top / np.maximum(units - height, 1))[height < 60]
    assert abs(place.mean() - 0.5) < 0.01
    assert abs(views.flip.mean() - 0.5) < 0.02
    np.testing.assert_allclose(np.bincount(views.turns.ravel()) / views.turns.size, 0.25, atol=0.02)


def test_each_modality_is_kept_with_probability_one_half():
    views = draw(4000)
    for masks in (views.teacher.reshape(-1, 3), views.student.reshape(-1, 3)):
        n = len(masks)
        assert masks.any(axis=1).all()
        sets, counts = np.unique(masks, axis=0, return_counts=True)
        # Eight sets at 1/8 each; the empty one is split over the three single ones.
        expected = np.where(sets.sum(axis=1) == 1, 1 / 8 + 1 / 24, 1 / 8)
        deviations = np.abs(counts / n - expected) / np.sqrt(expected * (1 - expected) / n)
        assert len(sets) == 7
        assert deviations.max() < 5
    # The student's view of a global crop is drawn anew, independently of the teacher's.
    teacher, student = views.teacher.reshape(-1, 3), views.student[:, :2].reshape(-1, 3)
    assert abs(np.corrcoef(teacher[:, 0], student[:, 0])[0, 1]) < 0.05
    drawn = views.drawn
    np.testing.assert_array_equal(drawn[:, :2], views.teacher | views.student[:, :2])
    np.testing.assert_array_equal(drawn[:, 2:], views.student[:, 2:])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), min_size=1))
def test_only_modalities_of_the_tile_are_drawn(rows):
    available = np.array(rows)
    for fusion in (True, False):
        views = draw(len(rows), CONFIG.model_copy(update={"fusion": fusion}), available=available)
        for masks in (views.teacher, views.student):
            assert (masks <= available[:, None]).all()
            counts = masks.sum(axis=-1)
            assert (counts >= 1).all() if fusion else (counts == 1).all()


def test_without_fusion_every_view_draws_one_modality_uniformly():
    views = draw(3000, CONFIG.model_copy(update={"fusion": False}))
    np.testing.assert_allclose(views.student.reshape(-1, 3).mean(axis=0), 1 / 3, atol=0.015)
    np.testing.assert_allclose(views.teacher.reshape(-1, 3).mean(axis=0), 1 / 3, atol=0.03)
    two = np.tile([True, False, True], (3000, 1))
    views = draw(3000, CONFIG.model_copy(update={"fusion": False}), available=two)
    np.testing.assert_allclose(views.student.reshape(-1, 3).mean(axis=0), [0.5, 0, 0.5], atol=0.02)


def test_keep_probability():
    views = draw(2000, CONFIG.model_copy(update={"keep_probability": 1.0}))
    assert views.student.all()
    views = draw(2000, CONFIG.model_copy(update={"keep_probability": 0.0}))
    assert (views.student.sum(axis=-1) == 1).all()


# What is cut


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(84, 84, 32), (50, 61, 32), (20, 25, 32), (60, 20, 32), (20, 60, 32), (32, 70, 32)],
)
def test_resize_against_reference(height, width, size):
    generator = np.random.default_rng(0)
    groups = native_groups(96, "s1")
    cropper = cropper_of(groups, CONFIG, seed=0)
    pixels = {"s1_10m": generator.integers(-4000, 500, (2, 96, 96)).astype(np.int16)}
    views = one_view(cropper, (3, 5, height, width), size)
    crop = cut(cropper, pixels, views)[0, "s1"]
    for band in range(2):
        window = pixels["s1_10m"][band, 3 : 3 + height, 5 : 5 + width]
        expected = resize_reference(window, size)
        # cv2 rounds once per pass, and to even.
        assert np.abs(crop[band] - expected).max() <= 1.01


@pytest.mark.parametrize(("side", "size"), [(96, 48), (84, 32), (50, 32), (63, 32)])
def test_shrinking_does_not_alias(side, size):
    checkerboard = np.where(np.indices((96, 96)).sum(axis=0) % 2, 3000, 1000).astype(np.uint16)
    groups = (CellGroup("s2_l2a", 10, MODALITIES["s2_l2a"].bands, 96, 96),)
    cropper = cropper_of(groups, CONFIG)
    pixels = {"s2_l2a_10m": np.broadcast_to(checkerboard, (12, 96, 96))}
    crop = cut(cropper, pixels, one_view(cropper, (0, 0, side, side), size))[0, "s2_l2a"]
    window = torch.from_numpy(checkerboard[:side, :side].astype(np.float32))[None, None]
    options = {"size": (size, size), "mode": "bilinear", "align_corners": False}
    plain = torch.nn.functional.interpolate(window, **options).numpy()
    filtered = torch.nn.functional.interpolate(window, **options, antialias=True).numpy()
    # The finest pattern there is averages to its mean; what is left of it is what the ground of
    # an output pixel holds in excess of whole periods, as with torch's antialiasing.
    assert np.abs(crop.astype(float) - 2000).max() <= 1000 * (size / side) ** 2 + 1
    assert np.abs(crop - filtered).max() <= 1000 * (size / side) ** 2 + 1
    if side % size:
        assert np.std(crop) < 0.2 * np.std(plain)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_bands_of_all_grids_show_the_same_ground(flip, turns):
    tile_size, size = 96, 32
    groups = native_groups(tile_size, "s2_l2a") + native_groups(tile_size, "s1")
    cropper = cropper_of(groups, CONFIG)
    box = (2, 5, 12, 9)  # in units of 60 m; 72 x 54 pixels at 10 m
    metres = {g.name: (np.arange(g.height) + 0.5) * g.gsd for g in groups}

    def ramp(group, along):
        """Ground coordinate in units of 0.1 m, along the rows or the columns."""
        values = metres[group.name] * 10
        plane = np.broadcast_to(values[:, None] if along == 0 else values[None], group.shape[1:])
        return np.broadcast_to(np.rint(plane), group.shape).astype(group.dtype)

    for along in (0, 1):
        pixels = {g.name: ramp(g, along) for g in groups}
        crops = cut(cropper, pixels, one_view(cropper, box, size, flip, turns))
        top, left, height, width = np.array(box) * 60
        start, length = ((top, height), (left, width))[along]
        exact = (start + (np.arange(size) + 0.5) * length / size) * 10
        plane = np.broadcast_to(exact[:, None] if along == 0 else exact[None], (size, size))
        expected = np.rot90(plane[:, ::-1] if flip else plane, -turns)
        # Half a 60 m pixel inside the crop bilinear enlarging sees no edge.
        rim = int(np.ceil(30 * size / 540)) + 1
        inner = np.s_[rim:-rim, rim:-rim]
        for modality in ("s2_l2a", "s1"):
            for band in crops[0, modality]:
                # 1 m: a tenth of the finest pixel.
                assert np.abs(band[inner] - expected[inner]).max() <= 10


def test_bands_are_in_model_order():
    groups = native_groups(96, "s2_l1c")
    cropper = cropper_of(groups, CONFIG)
    order = MODALITIES["s2_l1c"].bands
    pixels = {
        g.name: np.stack(
            [np.full((g.height, g.width), 100 * (order.index(b) + 1), np.uint16) for b in g.bands]
        )
        for g in groups
    }
    crop = cut(cropper, pixels, one_view(cropper, (0, 0, 16, 16), 48))[0, "s2_l1c"]
    np.testing.assert_array_equal(
        crop, np.arange(100, 1300, 100)[:, None, None] * np.ones((48, 48))
    )


def test_a_tile_smaller_than_the_crop_is_enlarged():
    groups = native_groups(24, "s2_l2a")
    config = DataConfig(global_size=64, local_size=32, keep_probability=1.0)
    cropper = cropper_of(groups, config)
    generator = np.random.default_rng(1)
    pixels = {g.name: generator.integers(1, 5000, g.shape).astype(g.dtype) for g in groups}
    views = cropper.draw(np.array([0]), np.array([0]), np.array([[True]]))
    crops = cut(cropper, pixels, views)
    assert {c.shape for c in crops.values()} == {(12, 64, 64), (12, 32, 32)}
    assert all(c.min() >= 1 for c in crops.values())


def test_nodata_does_not_bleed():
    groups = (CellGroup("s1", 10, ("VV", "VH"), 96, 96),)
    cropper = cropper_of(groups, CONFIG, fill=-1200)
    pixels = np.full((2, 96, 96), -1500, dtype=np.int16)
    pixels[0, :, :30] = MODALITIES["s1"].nodata
    views = one_view(cropper, (0, 0, 96, 96), 32)
    crop = cut(cropper, {"s1_10m": pixels}, views)[0, "s1"]
    np.testing.assert_array_equal(crop[0, :, :10], -32768)
    np.testing.assert_array_equal(crop[0, :, 10:], -1500)
    np.testing.assert_array_equal(crop[1], -1500)

    pixels[0, :, :31] = MODALITIES["s1"].nodata
    crop = cut(cropper, {"s1_10m": pixels}, views)[0, "s1"]
    # A third of the column's ground is missing: it takes the band's mean.
    np.testing.assert_array_equal(crop[0, :, 10], -1400)
    crop = cut(cropper, {"s1_10m": pixels}, one_view(cropper, (0, 0, 96, 96), 32, turns=1))
    np.testing.assert_array_equal(crop[0, "s1"][0, :10], -32768)


def test_crops_of_a_sample_do_not_depend_on_its_neighbours(small_dataset):
    dataset = Dataset.open(small_dataset)
    cropper = Cropper.for_dataset(dataset, DataConfig(global_size=64, local_size=32), seed=3)
    positions = np.arange(6)
    epochs = np.zeros(6, dtype=np.int64)
    together = cropper.draw(epochs, positions, dataset.available[:6])
    for i in (0, 4):
        alone = cropper.draw(epochs[:1], positions[i : i + 1], dataset.available[i : i + 1])
        pixels = dataset.read_tile(i)
        first, second = cut(cropper, pixels, together, row=i), cut(cropper, pixels, alone)
        assert first.keys() == second.keys()
        for key, crop in first.items():
            np.testing.assert_array_equal(crop, second[key])


def test_what_does_not_fit_is_one_clear_line(small_dataset):
    dataset = Dataset.open(small_dataset)
    cropper = Cropper.for_dataset(dataset, DataConfig(modalities=("s2_l2a", "s1")), seed=0)
    assert cropper.modalities == ("s1", "s2_l2a")
    assert (cropper.unit, cropper.units) == (60, 16)
    assert cropper.fill["s1"] == (-1400, -1400)

    def changed(**changes):
        return Dataset(dataset.uri, dataset.manifest.model_copy(update=changes), dataset.index)

    optical = tuple(g for g in dataset.groups if g.modality != "s1")
    with pytest.raises(UsageError, match="only has s2_l1c, s2_l2a"):
        Cropper.for_dataset(changed(groups=optical), DataConfig(modalities=("s1",)), seed=0)
    with pytest.raises(UsageError, match="s2_l1c has bands"):
        Cropper.for_dataset(changed(groups=optical[1:]), DataConfig(), seed=0)
    with pytest.raises(UsageError, match="whole multiples of 60 m"):
        Cropper.for_dataset(changed(tile_size=100), DataConfig(), seed=0)
