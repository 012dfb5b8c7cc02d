import numpy as np
import pytest
from numpy.typing import NDArray

from cmml_ros.errors import PoseError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.pose import estimate_pose, fuse_with_prior

CAMERA = Camera(640, 360, 526.0, 525.0, 321.0, 179.0, 'plumb_bob', (-0.12, 0.06, 0.0004, -0.0003, 0.0))
T_CAMERA_LIDAR = SE3.from_rotation_vector((0.02, -0.12, 0.05), (0.06, 0.01, -0.02))


def make_matches(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points on a wall half a metre away that fill the picture, and their exact pixels."""
    pixels = rng.uniform((5.0, 5.0), (634.0, 354.0), (count, 2))
    rays = CAMERA.rays(pixels)
    depth_m = 0.5 / (1.0 + 0.2 * rays[:, 0])  # a plane, oblique
    return T_CAMERA_LIDAR.inverse().apply(rays * depth_m[:, None]), pixels


def difference(found: SE3) -> NDArray[np.float64]:
    left = found @ T_CAMERA_LIDAR.inverse()
    return np.concatenate([left.rotation_vector, left.translation])


def test_exact_matches_on_a_plane_give_the_pose():
    points, pixels = make_matches(200, np.random.default_rng(1))
    estimate = estimate_pose(points, pixels, CAMERA, 2.0)
    assert np.abs(difference(estimate.T_camera_points)).max() < 1e-6
    assert estimate.inlier_ratio == 1.0


def test_wrong_matches_are_left_out():
    rng = np.random.default_rng(2)
    points, pixels = make_matches(500, rng)
    wrong = rng.random(500) < 0.6
    pixels[wrong] = rng.uniform((0.0, 0.0), (639.0, 359.0), (int(wrong.sum()), 2))
    estimate = estimate_pose(points, pixels, CAMERA, 2.0)
    assert np.abs(difference(estimate.T_camera_points)).max() < 1e-5
    assert estimate.inliers[~wrong].all()
    assert estimate.inliers[wrong].mean() < 0.02


def test_the_covariance_is_that_of_the_errors():
    squared = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        points, pixels = make_matches(400, rng)
        estimate = estimate_pose(points, pixels + rng.normal(0.0, 0.5, pixels.shape), CAMERA, 3.0)
        error = difference(estimate.T_camera_points)
        squared.append(error @ np.linalg.solve(estimate.covariance, error))
    # Chi-square of 6 degrees of freedom, a little more for a covariance out of 36 patches.
    assert 4.5 < float(np.mean(squared)) < 9.0


def test_a_smooth_error_is_what_the_systematic_covariance_says():
    points, pixels = make_matches(400, np.random.default_rng(3))
    estimate = estimate_pose(points, pixels + np.array([0.5, 0.0]), CAMERA, 3.0)  # half of the deviation it stands for
    error = difference(estimate.T_camera_points)
    assert np.abs(error[:3]).max() > 2e-4
    assert error @ np.linalg.solve(estimate.systematic + 1e-14 * np.eye(6), error) == pytest.approx(0.25, rel=0.1)


def test_what_does_not_determine_a_pose_is_refused():
    rng = np.random.default_rng(4)
    points, pixels = make_matches(200, rng)
    with pytest.raises(PoseError, match='too few'):
        estimate_pose(points[:20], pixels[:20], CAMERA, 2.0)
    with pytest.raises(PoseError, match='agree'):
        estimate_pose(points, rng.uniform((0.0, 0.0), (639.0, 359.0), (200, 2)), CAMERA, 2.0)
    spot = np.linalg.norm(pixels - pixels.mean(axis=0), axis=1) < 60.0
    with pytest.raises(PoseError, match='in a spot'):
        estimate_pose(np.tile(points[spot], (20, 1)), np.tile(pixels[spot], (20, 1)), CAMERA, 2.0)


def test_what_the_data_leave_open_stays_with_the_prior():
    covariance = np.diag([1e-8, 1e-8, 1e-8, 1.0, 1e-8, 1e-8])
    correction = np.array([0.01, 0.0, 0.0, 0.5, 0.003, 0.0])
    fused, fused_covariance = fuse_with_prior(correction, covariance, np.full(6, 0.02))
    assert fused[0] == pytest.approx(0.01, rel=1e-3)
    assert abs(fused[3]) < 1e-3
    assert fused[4] == pytest.approx(0.003, rel=1e-3)
    assert np.sqrt(fused_covariance[3, 3]) == pytest.approx(0.02, rel=1e-3)
