import numpy as np
import pytest

from cmml_ros.errors import ShapeError
from cmml_ros.model.range_features import range_features, range_pyramid, residuals_behind_surface

HEIGHT, WIDTH = 240, 320


def wall(count: int = 40000, seed: int = 0, tilt: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and depths of a tilted plane: its inverse depth is affine in the pixel."""
    rng = np.random.default_rng(seed)
    pixels = rng.random((count, 2)) * [WIDTH - 1, HEIGHT - 1]
    return pixels, 0.5 / (1.0 + tilt * (pixels[:, 0] / WIDTH - 0.5))


def inside_disc(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(pixels[:, 0] - 160, pixels[:, 1] - 120) < radius


def test_a_plane_has_no_residual_however_it_is_tilted():
    for tilt in (0.0, 0.3, -0.8):
        features = range_features(*wall(tilt=tilt), HEIGHT, WIDTH)
        assert features.shape == (3, 120, 160)
        assert np.abs(features[0]).max() < 0.05  # 0.05 mm


def test_a_column_leaves_no_residual_but_near_its_edges():
    # Radius 0.3 m, half a metre away, 25 degrees to either side; one quadratic over the picture is 1.5 mm off there.
    height, width, focal_px, radius_m, distance_m = 720, 1280, 1000.0, 0.3, 0.8
    pixels = np.random.default_rng(2).random((40000, 2)) * [width - 1, height - 1]
    x = (pixels[:, 0] - 0.5 * (width - 1)) / focal_px
    # (x z)^2 + (z - d)^2 = r^2, the nearer root.
    root = distance_m**2 - (1.0 + x**2) * (distance_m**2 - radius_m**2)
    on_column = root > 0.0
    pixels, x, root = pixels[on_column], x[on_column], root[on_column]
    depths = (distance_m - np.sqrt(root)) / (1.0 + x**2)
    hole = np.hypot(pixels[:, 0] - 760, pixels[:, 1] - 300) < 20
    residuals_mm = 1e3 * residuals_behind_surface(pixels, depths + 0.005 * hole, height, width)
    frontal = np.abs(x * depths) < radius_m * np.sin(np.radians(25))
    assert np.quantile(np.abs(residuals_mm[frontal & ~hole]), 0.95) < 0.3
    assert np.median(residuals_mm[hole]) == pytest.approx(5.0, rel=0.05)


def test_a_hole_of_ten_millimetres_stands_out_by_its_depth():
    pixels, depths = wall()
    depths = depths + 0.010 * inside_disc(pixels, 30)
    features = range_features(pixels, depths, HEIGHT, WIDTH)
    assert np.sinh(features[0, 60, 80]) == pytest.approx(10.0, rel=0.05)
    assert np.abs(features[0, 10:30, 10:150]).max() < 0.1


def test_smaller_pictures_have_the_features_of_their_own_size():
    pixels, depths = wall()
    depths = depths + 0.010 * inside_disc(pixels, 40) + np.random.default_rng(1).normal(0.0, 3e-4, depths.shape)
    (whole, reduced), behind_m = range_pyramid(pixels, depths, HEIGHT, WIDTH, (1, 4))
    np.testing.assert_array_equal(behind_m, residuals_behind_surface(pixels, depths, HEIGHT, WIDTH))
    np.testing.assert_array_equal(whole, range_features(pixels, depths, HEIGHT, WIDTH))
    assert reduced.shape == (3, 30, 40)
    alone = range_features((pixels + 0.5) / 4 - 0.5, depths, HEIGHT // 4, WIDTH // 4)
    np.testing.assert_allclose(reduced, alone, atol=1e-5)
    assert np.sinh(reduced[0, 15, 20]) == pytest.approx(10.0, rel=0.05)


def test_scatter_tells_the_noise_of_the_sensor():
    pixels, depths = wall()
    for noise_mm in (0.3, 20.0):
        noisy = depths + np.random.default_rng(1).normal(0.0, noise_mm * 1e-3, depths.shape)
        features = range_features(pixels, noisy, HEIGHT, WIDTH)
        assert np.sinh(features[1].max()) == pytest.approx(noise_mm, rel=0.1)


def test_support_falls_where_points_are_missing():
    pixels, depths = wall()
    keep = ~inside_disc(pixels, 40)
    features = range_features(pixels[keep], depths[keep], HEIGHT, WIDTH)
    assert features[2, 60, 80] < 0.2
    assert np.median(features[2]) > 0.45


def test_without_points_everything_is_zero():
    assert not range_features(np.empty((0, 2)), np.empty(0), HEIGHT, WIDTH).any()


def test_odd_sizes_and_wrong_shapes():
    pixels, depths = wall()
    keep = (pixels[:, 0] < 300) & (pixels[:, 1] < 200)
    assert range_features(pixels[keep], depths[keep], 201, 301).shape == (3, 101, 151)
    with pytest.raises(ShapeError, match=r'\(40000, 3\)'):
        range_features(np.zeros((40000, 3)), depths, HEIGHT, WIDTH)
