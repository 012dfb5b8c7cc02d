import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.dents import grow_over_dents, would_show
from cmml_ros.model.range_features import range_pyramid

HEIGHT, WIDTH = 160, 200
CENTRE, RADIUS_PX = (100.0, 80.0), 24.0
DISTANCE_M, DEPTH_M, NOISE_M = 0.5, 0.004, 0.0001


def disc(centre: tuple[float, float], radius_px: float) -> NDArray[np.float32]:
    v, u = np.indices((HEIGHT, WIDTH))
    return np.clip(radius_px + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0.0, 1.0).astype(np.float32)


def see_cavity(
    spacing_px: float,
    depth_m: float = DEPTH_M,
    hidden: NDArray[np.float32] | None = None,
    beside_m: NDArray[np.float64] | None = None,
    first_column: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """What `grow_over_dents` takes of a cap of a sphere in a wall.

    hidden: (H, W) where points of the floor lie among those of the wall. beside_m: (H, W) how far the wall itself lies
    behind. first_column: where the cloud begins.
    """
    rng = np.random.default_rng(3)
    pixels = np.stack(
        np.meshgrid(np.arange(1.3, WIDTH - 1.0, spacing_px), np.arange(1.3, HEIGHT - 1.0, spacing_px)), axis=-1
    ).reshape(-1, 2)
    pixels = pixels[pixels[:, 0] >= first_column]
    offset = np.hypot(*(pixels - CENTRE).T) / RADIUS_PX
    depths_m = DISTANCE_M + depth_m * np.maximum(1.0 - offset**2, 0.0) + rng.normal(0.0, NOISE_M, len(pixels))
    if beside_m is not None:
        column, row = np.rint(pixels).astype(int).T
        depths_m += beside_m[row, column]
    if hidden is not None:
        deep = pixels + 0.4 * spacing_px
        column, row = np.minimum(np.rint(deep).astype(int), (WIDTH - 1, HEIGHT - 1)).T
        deep = deep[hidden[row, column] > 0.5]
        pixels, depths_m = np.vstack([pixels, deep]), np.append(depths_m, np.full(len(deep), DISTANCE_M + depth_m))
    (maps,), behind_m = range_pyramid(pixels, depths_m, HEIGHT, WIDTH, (1,))
    return maps, pixels, behind_m


def draw_shadow() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the network makes of the cavity when light falls on its right third: its dark part, and the rim of that."""
    whole = disc(CENTRE, RADIUS_PX)
    mask = whole * (np.arange(WIDTH) < CENTRE[0] + 8.0)
    inside = (mask >= 0.5).astype(np.uint8)
    rim = cv2.dilate(inside, np.ones((3, 3))) - cv2.erode(inside, np.ones((3, 3)))
    return 0.97 * mask.astype(np.float32), rim.astype(np.float32)


def iou(mask: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    mine, other = mask >= 0.5, truth >= 0.5
    return float((mine & other).sum() / (mine | other).sum())


@pytest.mark.parametrize('spacing_px', [1.5, 2.0, 2.7])
def test_a_lit_part_of_a_cavity_is_added_and_the_rim_within_it_goes(spacing_px: float):
    mask, rim = draw_shadow()
    assert iou(mask, disc(CENTRE, RADIUS_PX)) < 0.75
    grow_over_dents(mask, rim, *see_cavity(spacing_px))
    assert iou(mask, disc(CENTRE, RADIUS_PX)) > 0.95
    assert rim[70:90, 104:114].max() == 0.0
    assert rim[70:90, 72:80].max() == 1.0  # the rim that is one stays


def test_a_mask_grows_as_far_as_the_network_sees_an_airhole_faintly():
    faint, rim = 0.3 * disc(CENTRE, RADIUS_PX), np.zeros((HEIGHT, WIDTH), np.float32)
    seed = disc((CENTRE[0] - 17.0, CENTRE[1]), 5.0)
    sure = np.maximum(faint, 0.97 * seed)
    grow_over_dents(sure, rim, *see_cavity(2.0))
    assert iou(sure, disc(CENTRE, RADIUS_PX)) > 0.9  # drawn in cells of two pixels


@pytest.mark.parametrize('away_px', [17.0, 0.0])
def test_a_mask_of_a_small_part_grows_over_the_whole_of_a_cavity(away_px: float):
    mask, rim = 0.97 * disc((CENTRE[0] - away_px, CENTRE[1]), 5.0), np.zeros((HEIGHT, WIDTH), np.float32)
    grow_over_dents(mask, rim, *see_cavity(2.0))
    assert iou(mask, disc(CENTRE, RADIUS_PX)) > 0.9


def test_a_mask_in_a_step_that_does_not_end_grows_once():
    v, u = np.indices((HEIGHT, WIDTH))
    step_m = np.where((np.abs(v - CENTRE[1]) < 12.0) & (u > 20.0), 0.002, 0.0)  # as far as the picture reaches
    mask, rim = 0.97 * disc(CENTRE, 8.0), np.zeros((HEIGHT, WIDTH), np.float32)
    grow_over_dents(mask, rim, *see_cavity(2.0, 0.0, beside_m=step_m))
    columns = np.flatnonzero((mask >= 0.5).any(axis=0))
    assert CENTRE[0] - 8.0 - 14.0 < columns[0] < columns[-1] < CENTRE[0] + 8.0 + 14.0


def test_an_airhole_does_not_spread_over_a_shallow_dent_around_it():
    v, u = np.indices((HEIGHT, WIDTH))
    dent_m = 0.0006 * np.clip(1.5 - np.hypot(u - CENTRE[0], v - CENTRE[1]) / 45.0, 0.0, 1.0)
    mask, rim = 0.97 * disc(CENTRE, RADIUS_PX / 2.0), np.zeros((HEIGHT, WIDTH), np.float32)
    grow_over_dents(mask, rim, *see_cavity(2.0, beside_m=dent_m))
    assert (mask >= 0.5).sum() < 1.2 * np.pi * RADIUS_PX**2 * 2.0


def test_nothing_is_added_where_the_cloud_ends():
    # What lies behind is not known to, where there is no wall beside it.
    mask, rim = 0.97 * disc((CENTRE[0] + 12.0, CENTRE[1]), 8.0), np.zeros((HEIGHT, WIDTH), np.float32)
    before = mask.copy()
    grow_over_dents(mask, rim, *see_cavity(2.0, first_column=CENTRE[0] - 3.0))
    np.testing.assert_array_equal(mask, before)


def test_what_is_right_stays_as_it_is():
    whole = 0.97 * disc(CENTRE, RADIUS_PX)
    mask, rim = whole.copy(), np.zeros_like(whole)
    grow_over_dents(mask, rim, *see_cavity(2.0))
    np.testing.assert_array_equal(mask, whole)


@pytest.mark.parametrize(('spacing_px', 'depth_m'), [(4.0, DEPTH_M), (2.0, 0.0)])
def test_sparse_points_and_a_flat_wall_add_nothing(spacing_px: float, depth_m: float):
    mask, rim = draw_shadow()
    before = mask.copy()
    grow_over_dents(mask, rim, *see_cavity(spacing_px, depth_m))
    np.testing.assert_array_equal(mask, before)


def test_points_that_the_wall_hides_from_the_camera_add_nothing():
    # A range sensor beside the camera sees the floor behind the wall: such points lie among those of the wall.
    whole = 0.97 * disc(CENTRE, RADIUS_PX)
    mask, rim = whole.copy(), np.zeros_like(whole)
    hidden = disc((CENTRE[0] + 12.0, CENTRE[1]), RADIUS_PX) * (whole < 0.1)
    grow_over_dents(mask, rim, *see_cavity(2.0, hidden=hidden))
    assert iou(mask, whole) > 0.97


def test_a_dent_is_not_found_by_range_alone():
    mask, rim = np.zeros((2, HEIGHT, WIDTH), np.float32)
    grow_over_dents(mask, rim, *see_cavity(2.0))
    assert not mask.any()


def test_the_neighbour_keeps_its_pixels():
    mask, rim = draw_shadow()
    neighbour = disc((132.0, 80.0), 7.0)
    mask = np.maximum(mask, neighbour)
    grow_over_dents(mask, rim, *see_cavity(2.0))
    np.testing.assert_array_equal(mask[neighbour == 1.0], 1.0)
    assert iou(np.where(neighbour > 0.0, 0.0, mask).astype(np.float32), disc(CENTRE, RADIUS_PX)) > 0.93


@pytest.mark.parametrize(
    ('spacing_px', 'depth_m', 'shown'),
    # The median depth of a cap is half of the greatest: 20, 10 and 3 deviations of a reading.
    [(2.0, DEPTH_M, True), (2.7, 20 * NOISE_M, True), (2.0, 6 * NOISE_M, False), (4.0, DEPTH_M, False)],
)
def test_a_dense_cloud_would_show_what_is_deeper_than_its_noise(spacing_px: float, depth_m: float, shown: bool):
    maps, _, _ = see_cavity(spacing_px, depth_m)
    mask = InstanceMask(disc(CENTRE, RADIUS_PX)[50:110, 70:130], 70, 50, 0.9)
    assert would_show(mask, maps) is shown


def test_range_shows_nothing_where_it_does_not_reach():
    maps, _, _ = see_cavity(2.0)
    maps[:, :, : int(CENTRE[0] + 0.3 * RADIUS_PX) // 2] = 0.0  # begins right of the middle of the airhole
    mask = InstanceMask(disc(CENTRE, RADIUS_PX)[50:110, 70:130], 70, 50, 0.9)
    assert not would_show(mask, maps)
