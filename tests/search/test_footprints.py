"""Places on the globe, also where its seam is."""

import numpy as np
import pyarrow as pa
import pytest
import shapely

from terrafm.search.footprints import Footprints, distances


def footprints(*shapes):
    return Footprints(pa.array([shapely.to_wkb(shape) for shape in shapes]))


ACROSS = shapely.MultiPolygon([shapely.box(179.9, 10, 180, 11), shapely.box(-180, 10, -179.7, 11)])
PLAIN = shapely.box(-70.5, -33.5, -70, -33)


def test_centres_are_right_across_180_degrees():
    np.testing.assert_allclose(
        footprints(ACROSS, PLAIN).centres(), [[-179.9, 10.5], [-70.25, -33.25]], atol=1e-9
    )


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ((179.95, 10.5), [True, False]), ((-179.8, 10.5), [True, False]),
        ((180, 10.5), [True, False]), ((-180, 10.5), [True, False]),
        ((0, 10.5), [False, False]), ((-70.5, -33.2), [False, True]),
        ((-69.99, -33.2), [False, False]),
    ],
)  # fmt: skip
def test_a_point_is_covered_on_both_sides_of_the_seam(point, inside):
    assert footprints(ACROSS, PLAIN).cover(*point).tolist() == inside


def haversine(a, b):
    (x, y), (u, v) = np.radians(a), np.radians(b)
    chord = np.sin((v - y) / 2) ** 2 + np.cos(y) * np.cos(v) * np.sin((u - x) / 2) ** 2
    return 2 * 6371.0088 * np.arcsin(np.sqrt(chord))


@pytest.mark.parametrize(
    ("start", "end"),
    [((2.35, 48.86), (-74.0, 40.71)), ((179.9, 10), (-179.9, 10)), ((0, 89), (180, 89)),
     ((15, 45), (15, 45))],
)  # fmt: skip
def test_distances_are_those_of_the_globe(start, end):
    (found,) = distances(*start, np.array([end]))
    # A sphere is up to half a percent off.
    assert found == pytest.approx(haversine(start, end), rel=0.006, abs=1e-9)


def test_the_diagonal_of_a_footprint():
    (across, _) = footprints(ACROSS, PLAIN).diagonals()
    assert across == pytest.approx(haversine((-180.1, 10), (-179.7, 11)), rel=0.006)
