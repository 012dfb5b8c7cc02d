"""Projection against values by hand, against OpenCV, and back."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cmml_ros.errors import ShapeError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3

PINHOLE = Camera(640, 480, 500.0, 510.0, 320.0, 240.0)
DISTORTED = {
    'plumb_bob_4': replace(PINHOLE, distortion=(-0.35, 0.12, 0.001, -0.002)),
    'plumb_bob_5': replace(PINHOLE, distortion=(-0.3, 0.1, 0.001, -0.002, -0.01)),
    'pincushion': replace(PINHOLE, distortion=(0.3, 0.1, 0.001, -0.002, 0.01)),
    'rational': replace(
        PINHOLE, model='rational_polynomial', distortion=(0.5, -2.6, 0.0005, -0.0002, 1.5, 0.38, -2.4, 1.43)
    ),
    'equidistant': replace(PINHOLE, model='equidistant', distortion=(-0.01, 0.003, -0.002, 0.0004)),
}
ALL = {'pinhole': PINHOLE, **DISTORTED}


def every_pixel(camera, step=7):
    u, v = np.meshgrid(np.arange(0.0, camera.width, step), np.arange(0.0, camera.height, step))
    return np.stack([u.ravel(), v.ravel()], axis=1)


def test_pinhole_by_hand():
    pixels, visible = PINHOLE.project([[0.0, 0.0, 2.0], [0.2, -0.1, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 1.0]])
    assert pixels[:2].tolist() == pytest.approx(np.array([[320.0, 240.0], [420.0, 189.0]]))
    assert np.isnan(pixels[2]).all()
    assert pixels[3] == pytest.approx([820.0, 240.0])
    assert visible.tolist() == [True, True, False, False]


def test_barrel_distortion_by_hand():
    camera = replace(PINHOLE, distortion=(-0.2, 0.0, 0.0, 0.0))
    pixels, _ = camera.project([[0.5, 0.0, 1.0]])
    assert pixels[0] == pytest.approx([320.0 + 500.0 * 0.5 * (1.0 - 0.2 * 0.25), 240.0])


def test_equidistant_by_hand():
    camera = replace(PINHOLE, model='equidistant')
    pixels, _ = camera.project([[1.0, 0.0, 1.0]])  # 45 degrees off the axis
    assert pixels[0] == pytest.approx([320.0 + 500.0 * np.pi / 4, 240.0])


def test_image_spans_half_a_pixel_around_the_outer_centres():
    inside = PINHOLE.contains([[-0.5, -0.5], [639.49, 479.49], [-0.51, 0.0], [639.5, 0.0], [np.nan, 0.0]])
    assert inside.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize('camera', ALL.values(), ids=ALL)
def test_projects_like_opencv(camera):
    rng = np.random.default_rng(1)
    points = rng.uniform([-1.0, -1.0, 0.5], [1.0, 1.0, 4.0], (2000, 3))
    pixels, visible = camera.project(points)
    distortion = np.array(camera.distortion or (0.0,) * 4)
    project = cv2.fisheye.projectPoints if camera.model == 'equidistant' else cv2.projectPoints
    expected = project(points[:, None], np.zeros(3), np.zeros(3), camera.matrix, distortion)[0][:, 0]
    known = np.isfinite(pixels[:, 0])
    assert visible.sum() > 500
    np.testing.assert_allclose(pixels[known], expected[known], atol=1e-6)


@pytest.mark.parametrize('camera', ALL.values(), ids=ALL)
def test_sees_what_projects_into_the_image(camera):
    T_camera_source = SE3.from_rotation_vector([0.1, -0.2, 0.3], [0.05, -0.02, 0.1])
    points_camera = np.random.default_rng(0).uniform(-2.0, 2.0, (5000, 3))
    points_camera[:4] = [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [np.nan, 0.0, 1.0]]
    points_source = T_camera_source.inverse().apply(points_camera)
    pixels, visible = camera.project(T_camera_source.apply(points_source))
    found = camera.see(points_source, T_camera_source)
    assert 100 < visible.sum() < 3000
    np.testing.assert_array_equal(found[2], np.flatnonzero(visible))
    np.testing.assert_allclose(found[0], points_camera[visible], atol=1e-12)
    np.testing.assert_allclose(found[1], pixels[visible], atol=1e-9)
    # As drivers give them: in float32, between other fields.
    packed = np.zeros((5000, 4), np.float32)
    packed[:, :3] = points_source
    np.testing.assert_allclose(camera.see(packed[:, :3], T_camera_source)[0], found[0], atol=1e-6)


@pytest.mark.parametrize('camera', ALL.values(), ids=ALL)
def test_rays_invert_the_projection_inside_the_image(camera):
    pixels = every_pixel(camera)
    rays = camera.rays(pixels)
    assert (rays[:, 2] == 1.0).all()
    again, visible = camera.project(rays)
    assert visible.all()
    np.testing.assert_allclose(again, pixels, atol=1e-6)


@pytest.mark.parametrize('camera', ALL.values(), ids=ALL)
def test_rays_lead_to_the_points_that_project(camera):
    rng = np.random.default_rng(2)
    points = rng.uniform([-0.4, -0.3, 0.8], [0.4, 0.3, 3.0], (500, 3))
    pixels, visible = camera.project(points)
    assert visible.sum() > 300
    again = camera.rays(pixels[visible]) * points[visible, 2:]
    np.testing.assert_allclose(again, points[visible], atol=1e-9)


@given(
    st.sampled_from(['plumb_bob', 'rational_polynomial', 'equidistant']),
    st.tuples(*[st.floats(-0.5, 0.5)] * 2, *[st.floats(-0.01, 0.01)] * 2, *[st.floats(-0.3, 0.3)] * 4),
    st.integers(0, 2**32 - 1),
)
def test_round_trip_for_any_coefficients(model, coefficients, seed):
    counts = {'plumb_bob': 5, 'rational_polynomial': 8, 'equidistant': 4}
    camera = replace(PINHOLE, model=model, distortion=coefficients[: counts[model]])
    pixels = np.random.default_rng(seed).uniform(-0.5, [639.5, 479.5], (50, 2))
    rays = camera.rays(pixels)
    known = np.isfinite(rays[:, 0])
    again, _ = camera.project(rays[known])
    np.testing.assert_allclose(again, pixels[known], atol=1e-6)
    # And the other way: a pixel that the camera says it sees a point at leads back to this point.
    points = np.random.default_rng(seed).uniform([-3.0, -3.0, 0.1], [3.0, 3.0, 2.0], (200, 3))
    seen, visible = camera.project(points)
    assume(visible.any())
    np.testing.assert_allclose(camera.rays(seen[visible]), points[visible] / points[visible, 2:], rtol=1e-5, atol=1e-5)


def test_points_beyond_the_fold_of_the_polynomial_are_invisible():
    # r (1 - 0.3 r^2) turns back at r = 1.054; r = 1.7 would land at 0.226, well inside the image.
    camera = replace(PINHOLE, distortion=(-0.3, 0.0, 0.0, 0.0))
    folded = cv2.projectPoints(
        np.array([[1.7, 0.0, 1.0]]), np.zeros(3), np.zeros(3), camera.matrix, np.array([-0.3, 0, 0, 0])
    )
    assert folded[0].ravel() == pytest.approx([320.0 + 500.0 * 1.7 * (1.0 - 0.3 * 1.7**2), 240.0])
    pixels, visible = camera.project([[1.7, 0.0, 1.0], [1.04, 0.0, 1.0]])
    assert np.isnan(pixels[0]).all()
    assert not visible[0]
    assert pixels[1] == pytest.approx([320.0 + 500.0 * 1.04 * (1.0 - 0.3 * 1.04**2), 240.0])


def test_pixels_that_the_lens_does_not_reach_have_no_ray():
    camera = replace(PINHOLE, model='equidistant', fx=100.0, fy=100.0)
    rays = camera.rays([[320.0, 240.0], [320.0 + 100.0 * np.pi / 4, 240.0], [600.0, 240.0]])
    assert rays[0] == pytest.approx([0.0, 0.0, 1.0])
    assert rays[1] == pytest.approx([1.0, 0.0, 1.0])
    assert np.isnan(rays[2, :2]).all()


def test_cropped_and_scaled_cameras_see_the_same_rays():
    camera = DISTORTED['plumb_bob_5']
    pixels = every_pixel(camera, 40)
    cropped = camera.cropped(100, 50, 200, 150)
    assert (cropped.width, cropped.height) == (200, 150)
    np.testing.assert_allclose(cropped.rays(pixels - [100, 50]), camera.rays(pixels), atol=1e-9)
    half = camera.scaled(0.5)
    assert (half.width, half.height) == (320, 240)
    np.testing.assert_allclose(half.rays((pixels + 0.5) * 0.5 - 0.5), camera.rays(pixels), atol=1e-9)


def test_empty_arrays_pass():
    pixels, visible = DISTORTED['rational'].project(np.empty((0, 3)))
    assert pixels.shape == (0, 2)
    assert visible.shape == (0,)
    assert DISTORTED['rational'].rays(np.empty((0, 2))).shape == (0, 3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'fx': 0.0}, 'focal lengths must be positive'),
        ({'fy': -1.0}, 'focal lengths must be positive'),
        ({'cx': float('nan')}, 'finite'),
        ({'width': 0}, 'positive image size, got 0x480'),
        ({'model': 'ftheta'}, 'unknown camera model "ftheta"'),
        ({'distortion': (0.1, 0.2, 0.3)}, '0, 4, 5, 8 coefficients, got 3'),
        ({'distortion': (0.1, float('inf'), 0.0, 0.0)}, 'finite'),
        ({'model': 'equidistant', 'distortion': (0.1,) * 5}, '0, 4 coefficients, got 5'),
    ],
)
def test_refuses_what_is_no_camera(changes, message):
    with pytest.raises(ShapeError, match=message):
        replace(PINHOLE, **changes)


def test_refuses_wrong_shapes():
    with pytest.raises(ShapeError, match=r'points_camera must be \(N, 3\), got \(3,\)'):
        PINHOLE.project(np.zeros(3))
    with pytest.raises(ShapeError, match=r'pixels must be \(N, 2\), got \(1, 3\)'):
        PINHOLE.rays(np.zeros((1, 3)))
