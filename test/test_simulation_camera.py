import math
from dataclasses import replace

import numpy as np
import pytest

from cmml_ros.errors import SceneError, ShapeError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.camera import render, see, shade_fast, shade_path
from cmml_ros.simulation.light import Light, draw_light
from cmml_ros.simulation.response import Response, compose, draw_response
from cmml_ros.simulation.scene import make_scene

FACING_WALL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
CAMERA = Camera(640, 480, 800.0, 800.0, 319.5, 239.5)
SUN = Light(sun=np.ones(3), sun_direction=np.array([-0.6, -0.6, math.sqrt(0.28)]), sky=np.full(3, 0.3))


def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope='module')
def scene():
    # Small enough that the camera sees all of it.
    return make_scene('plane', seed=1, width_m=0.36, height_m=0.27, airhole_count=14)


@pytest.fixture(scope='module')
def pose():
    return SE3(FACING_WALL, np.array([0.18, -0.5, 0.135]))


@pytest.fixture(scope='module')
def view(scene, pose):
    return see(scene, CAMERA, pose, rng())


def test_coverage_sums_to_the_area_of_the_rims(scene, view):
    pixel_area = (0.5 / 800.0) ** 2
    assert float(view.coverage.sum(dtype=np.float64)) * pixel_area == pytest.approx(
        sum(hole.area_m2 for hole in scene.holes), rel=5e-3
    )
    assert view.pixel_m == pytest.approx(0.5 / 800.0)


def test_ids_and_coverage_agree(scene, view):
    assert set(np.unique(view.hole_ids)) == {-1, 0, *(hole.id for hole in scene.holes)}
    assert (view.coverage[view.hole_ids > 0] > 0).all()
    assert (view.hole_ids[view.coverage == 1] > 0).all()
    assert (view.coverage[view.hole_ids < 0] == 0).all()
    for hole in scene.holes:
        rows, columns = np.nonzero(view.hole_ids == hole.id)
        u, v = 800.0 * (hole.centre[0] - 0.18) / 0.5 + 319.5, 239.5 - 800.0 * (hole.centre[2] - 0.135) / 0.5
        assert columns.mean() == pytest.approx(u, abs=0.7)
        assert rows.mean() == pytest.approx(v, abs=0.7)


def test_depth_is_that_of_the_rays(scene, pose, view):
    assert view.depth_m[view.hole_ids == 0].min() == pytest.approx(0.5)
    assert np.isinf(view.depth_m[view.hole_ids < 0]).all()
    rows, columns = np.nonzero(view.hole_ids > 0)
    rays = CAMERA.rays(np.stack([columns, rows], axis=1))
    hits = scene.cast(np.tile(pose.translation, (len(rays), 1)), rays @ pose.rotation.T)
    np.testing.assert_allclose(view.depth_m[rows, columns], hits.distance_m / np.linalg.norm(rays, axis=1), atol=1e-5)
    assert (hits.surface_id == view.hole_ids[rows, columns]).all()


def test_distortion_and_obliquity_move_the_rims_with_the_wall(scene):
    camera = replace(CAMERA, distortion=(-0.12, 0.05, 0.001, -0.0005))
    T_scene_camera = SE3(FACING_WALL, np.array([0.18, -0.5, 0.135])) @ SE3.from_rotation_vector(
        (0.1, -0.3, 0.2), (0, 0, 0)
    )
    view = see(scene, camera, T_scene_camera, rng())
    for hole in scene.holes:
        pixels, visible = camera.project(T_scene_camera.inverse().apply(hole.rim))
        if visible.all() and hole.equivalent_diameter_m > 0.004:
            x, y = pixels.T
            area = abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2
            low, high = np.floor(pixels.min(axis=0)).astype(int) - 1, np.ceil(pixels.max(axis=0)).astype(int) + 2
            seen = view.coverage[low[1] : high[1], low[0] : high[0]].sum()
            assert seen >= 0.99 * area  # a neighbour may reach into the window


def test_the_wall_is_lit_as_the_cosine_law_says(scene, view):
    shading = shade_fast(scene, view, SUN, rng())
    on_wall = (view.opening == 0) & (view.hole_ids == 0)
    np.testing.assert_allclose(shading[on_wall], 1.0, atol=1e-5)


def test_a_lamp_at_the_lens_fades_with_distance_and_angle(scene, view):
    lamp = Light(lamps=np.zeros((1, 3)), lamp_power=np.ones(3))
    shading = shade_fast(scene, view, lamp, rng())
    row, column = 30, 600
    assert view.opening[row, column] == 0
    x, y = (column - 319.5) / 800.0, (row - 239.5) / 800.0
    assert shading[row, column, 0] == pytest.approx((1 + x * x + y * y) ** -1.5, rel=2e-3)


def test_airholes_are_darker_the_deeper_they_are(scene, view):
    shading = shade_fast(scene, view, SUN, rng())[..., 1]
    deep, shallow = [], []
    for hole in scene.holes:
        mean = float(shading[view.hole_ids == hole.id].mean())
        assert mean < 1.02
        (deep if hole.depth_max_m > 0.5 * hole.equivalent_diameter_m else shallow).append(mean)
    assert np.mean(deep) < 0.6 < np.mean(shallow)


def test_pictures_repeat_with_their_seed_and_show_airholes_dark(scene, pose):
    first, again = (render(scene, CAMERA, pose, SUN, Response(), rng()) for _ in range(2))
    assert first.image.dtype == np.uint8
    assert first.image.shape == (480, 640, 3)
    np.testing.assert_array_equal(first.image, again.image)
    wall, holes = first.image[first.hole_ids == 0].mean(), first.image[first.coverage == 1].mean()
    assert holes < 0.75 * wall
    np.testing.assert_allclose((first.shading * first.albedo)[first.hole_ids == 0].max() < 2.0, True)


def test_a_camera_that_sees_no_wall_is_refused(scene):
    with pytest.raises(SceneError, match='does not see the wall'):
        see(scene, CAMERA, SE3(np.eye(3), np.array([0.1, -0.5, 0.1])), rng())


@pytest.mark.parametrize('seed', range(5))
def test_light_and_cameras_drawn_at_random_make_usable_pictures(scene, pose, seed):
    drawn = np.random.default_rng(seed)
    light = draw_light(drawn, 0.5)
    picture = render(scene, CAMERA, pose, light, draw_response(drawn), drawn)
    wall = picture.image[picture.hole_ids == 0]
    assert 20 < np.median(wall) < 245
    assert wall.std() > 1


def test_a_perfect_camera_gives_the_srgb_value_of_its_level():
    flat = np.ones((8, 8, 3), np.float32)
    perfect = Response(
        level=0.3, vignetting=0.0, defocus_px=0.0, glare=0.0, shot_noise=0.0, read_noise=0.0, contrast=0.0
    )
    assert np.unique(compose(flat, 0.3 * flat, perfect, rng())).tolist() == [149]  # 255 (1.055 * 0.3^(1/2.4) - 0.055)
    noisy = compose(flat, flat, replace(perfect, read_noise=0.01), rng())
    assert 0 < noisy.std() < 5
    with pytest.raises(ShapeError, match='must both be'):
        compose(flat, flat[:4], perfect, rng())


@pytest.mark.slow
def test_path_tracing_agrees_with_fast_shading(scene, pose):
    crop = CAMERA.cropped(160, 120, 320, 240)
    view = see(scene, crop, pose, rng())
    fast, path = shade_fast(scene, view, SUN, rng()), shade_path(scene, view, SUN, 64, 1)
    for hole in scene.holes:
        seen = (view.hole_ids == hole.id) & (view.coverage == 1)
        if seen.sum() > 30:
            assert path[seen].mean() == pytest.approx(fast[seen].mean(), abs=0.04)
    edge = (view.opening > 0) & (view.opening < 1)
    assert path[edge].mean() == pytest.approx(fast[edge].mean(), abs=0.03)
    np.testing.assert_array_equal(path, shade_path(scene, view, SUN, 64, 1))
    distorted = see(scene, replace(crop, distortion=(1e-9, 0.0, 0.0, 0.0)), pose, rng())
    np.testing.assert_allclose(shade_path(scene, distorted, SUN, 64, 1).mean(), path.mean(), rtol=2e-3)
