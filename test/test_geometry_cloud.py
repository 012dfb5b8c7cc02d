"""What a camera sees of a cloud: occlusion removes walls behind poles and never the bottom of an airhole."""

from __future__ import annotations

import numpy as np
import pytest

from cmml_ros.errors import ShapeError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud, project_cloud
from cmml_ros.geometry.transforms import SE3

CAMERA = Camera(1280, 720, 1000.0, 1000.0, 639.5, 359.5)


def plane(depth_m, width_m, height_m, spacing_m):
    """Points of a wall that faces the camera."""
    x = np.arange(-width_m / 2, width_m / 2, spacing_m)
    y = np.arange(-height_m / 2, height_m / 2, spacing_m)
    grid = np.meshgrid(x, y)
    return np.stack([grid[0].ravel(), grid[1].ravel(), np.full(grid[0].size, depth_m)], axis=1)


def test_keeps_order_intensity_and_frame():
    points_lidar = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [2.0, 0.1, 0.0]])
    cloud = Cloud(points_lidar, np.array([10.0, 20.0, 30.0], dtype=np.float32))
    # REP 103: x forward, y left, z up of the sensor becomes z forward, x right, y down of the camera.
    T_camera_lidar = SE3(np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), np.zeros(3))
    projected = project_cloud(cloud, CAMERA, T_camera_lidar)
    np.testing.assert_allclose(projected.points_camera, [[0.0, 0.0, 1.0], [-0.1, 0.0, 2.0]], atol=1e-12)
    np.testing.assert_allclose(projected.pixels, [[639.5, 359.5], [589.5, 359.5]])
    np.testing.assert_array_equal(projected.intensity, [10.0, 30.0])


@pytest.mark.parametrize('spacing_m', [0.0005, 0.002, 0.006])
@pytest.mark.parametrize(('distance_m', 'depth_m'), [(0.6, 0.04), (0.15, 0.04), (3.0, 0.09)])
def test_never_removes_the_bottom_of_a_hole(distance_m, depth_m, spacing_m):
    points = plane(distance_m, 0.1, 0.1, spacing_m)
    inside = np.hypot(points[:, 0], points[:, 1]) < 0.015
    points[inside, 2] += depth_m
    projected = project_cloud(Cloud(points), CAMERA, SE3.identity())
    assert len(projected) == CAMERA.project(points)[1].sum()


@pytest.mark.parametrize('spacing_m', [0.002, 0.01, 0.03])
def test_removes_the_wall_behind_a_pole(spacing_m):
    pole, wall = plane(1.0, 0.1, 0.7, spacing_m / 2), plane(2.0, 2.0, 1.4, spacing_m)
    projected = project_cloud(Cloud(np.concatenate([pole, wall])), CAMERA, SE3.identity())
    on_wall = projected.points_camera[projected.points_camera[:, 2] == 2.0]
    behind_pole = np.abs(on_wall[:, 0] / 2.0) < 0.05 - 0.016  # half a cell of 32 px inside the pole's silhouette
    assert behind_pole.sum() == 0
    aside = np.abs(wall[:, 0] / 2.0) > 0.05 + 0.032
    assert len(on_wall) >= (aside & CAMERA.project(wall)[1]).sum()


def test_keeps_a_wall_seen_at_a_grazing_angle():
    wall = plane(0.0, 0.6, 0.3, 0.002)
    turned = SE3.from_rotation_vector([0.0, np.radians(75.0), 0.0], [0.0, 0.0, 1.0])
    points = turned.apply(wall)
    projected = project_cloud(Cloud(points), CAMERA, SE3.identity())
    assert len(projected) == CAMERA.project(points)[1].sum()


def test_empty_cloud():
    projected = project_cloud(Cloud(np.empty((0, 3)), np.empty(0, dtype=np.float32)), CAMERA, SE3.identity())
    assert len(projected) == 0
    assert projected.intensity.shape == (0,)


def test_refuses_wrong_shapes():
    with pytest.raises(ShapeError, match=r'points must be \(N, 3\), got \(5,\)'):
        Cloud(np.zeros(5))
    with pytest.raises(ShapeError, match=r'intensity must be \(2,\), got \(3,\)'):
        Cloud(np.zeros((2, 3)), np.zeros(3, dtype=np.float32))
