"""Range sensors against walls whose every point is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from cmml_ros.errors import SceneError
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.cavity import Cavity, make_airhole, make_tie_hole
from cmml_ros.simulation.range_sensor import (
    SENSORS,
    DepthCamera,
    LineProfiler,
    RangeSensor,
    TofLidar,
    describe_sensor,
    make_sensor,
)
from cmml_ros.simulation.scene import Scene, make_scene

DISTANCE_M = 0.5
MIDDLE = np.array([0.6, 0.4])

# The wall is the plane y = 0 of the scene; the sensors stand in front of its middle.
POSITION = np.array([MIDDLE[0], -DISTANCE_M, MIDDLE[1]])
T_SCENE_OPTICAL = SE3(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]), POSITION)
T_SCENE_LIDAR = SE3(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), POSITION)

EXACT_CAMERA = DepthCamera(range_noise_m=0.0, bias_m=0.0, quantisation_m=0.0)
EXACT_PROFILER = LineProfiler(range_noise_m=0.0, bias_m=0.0)
EXACT_LIDAR = TofLidar(range_noise_m=0.0, bias_m=0.0, walk_m=0.0, dropout_ratio=0.0)


@pytest.fixture(scope='module')
def plane() -> Scene:
    return make_scene('plane', 3, width_m=1.2, height_m=0.8, airhole_count=0, distractor_density=0.0)


def with_cavity(plane: Scene, cavity: Cavity) -> Scene:
    return replace(plane, cavities=(cavity.moved(MIDDLE),))


def scan(sensor: RangeSensor, scene: Scene, seed: int = 0) -> Cloud:
    T_scene_sensor = T_SCENE_LIDAR if isinstance(sensor, TofLidar) else T_SCENE_OPTICAL
    cloud = sensor.scan(scene, T_scene_sensor, np.random.default_rng(seed))
    return Cloud(T_scene_sensor.apply(cloud.points), cloud.intensity)


def depths_m(cloud: Cloud) -> np.ndarray:
    return cloud.points[:, 1]


@pytest.mark.parametrize(
    'sensor', [EXACT_CAMERA, EXACT_PROFILER, EXACT_LIDAR], ids=lambda sensor: type(sensor).__name__
)
def test_without_noise_every_point_lies_on_the_wall(sensor: RangeSensor, plane: Scene) -> None:
    cloud = scan(sensor, plane)
    assert len(cloud) > 40_000
    # A beam on the edge of the field sees millimetres of depth, and bright parts of its footprint count more.
    assert np.abs(depths_m(cloud)).max() < (5e-4 if isinstance(sensor, TofLidar) else 1e-6)


def test_depth_camera_has_fifty_thousand_points_or_as_many_as_asked(plane: Scene) -> None:
    assert len(scan(EXACT_CAMERA, plane)) == pytest.approx(50_000, rel=0.01)
    fine = replace(EXACT_CAMERA, width=730, height=411)
    assert len(scan(fine, plane)) == 730 * 411


@pytest.mark.parametrize('sensor', [
    DepthCamera(range_noise_m=0.0005, bias_m=0.0, quantisation_m=0.0),
    LineProfiler(range_noise_m=0.0005, bias_m=0.0),
    TofLidar(range_noise_m=0.0005, bias_m=0.0, walk_m=0.0, field_of_view_deg=20.0),
], ids=lambda sensor: type(sensor).__name__)  # fmt: skip
def test_noise_has_the_stated_deviation_along_the_ray(sensor: RangeSensor, plane: Scene) -> None:
    cloud = scan(sensor, plane)
    cosine = DISTANCE_M / np.linalg.norm(cloud.points - POSITION, axis=1)
    if isinstance(sensor, DepthCamera):
        cosine[:] = 1.0  # its figure is that of the depth
    if isinstance(sensor, LineProfiler):
        cosine = DISTANCE_M / np.hypot(DISTANCE_M, cloud.points[:, 0] - MIDDLE[0])
    assert np.std(depths_m(cloud) / cosine) == pytest.approx(0.0005, rel=0.02)


def test_depth_noise_grows_with_the_square_of_the_range(plane: Scene) -> None:
    sensor = replace(EXACT_CAMERA, range_noise_growth=0.002)
    assert np.std(depths_m(scan(sensor, plane))) == pytest.approx(0.002 * DISTANCE_M**2, rel=0.02)


def test_depth_is_quantised(plane: Scene) -> None:
    steps = depths_m(scan(DepthCamera(quantisation_m=0.0001), plane)) / 0.0001
    assert np.allclose(steps, np.round(steps), atol=1e-6)


def test_dense_points_give_the_volume_of_a_cap(plane: Scene) -> None:
    # A cap of 30 mm and 9 mm depth: V = pi h (3 a^2 + h^2) / 6 = 3563 mm3; the mesh is a little smaller.
    cap = make_airhole('cap', 0.030, 0.3, None)
    volume = math.pi * 0.009 * (3 * 0.015**2 + 0.009**2) / 6
    sensor = replace(EXACT_PROFILER, profile_step_m=0.00025, profiles=160, baseline_m=0.0)
    cloud = scan(sensor, with_cavity(plane, cap))
    x, depth, z = cloud.points.T
    radius = np.hypot(x - MIDDLE[0], z - MIDDLE[1])
    # Lines are dense: the mean depth over the rim is that of the points, ring by ring.
    edges = np.linspace(0.0, 0.0152, 39)
    rings = [depth[(radius >= low) & (radius < high)].mean() for low, high in itertools.pairwise(edges)]
    assert np.sum(rings * np.diff(math.pi * edges**2)) == pytest.approx(volume, rel=0.02)


def test_calibration_error_belongs_to_the_individual(plane: Scene) -> None:
    for sensor in (
        replace(EXACT_CAMERA, bias_m=0.0002, width=64, height=36),
        replace(EXACT_PROFILER, bias_m=0.0002, profiles=4),
    ):
        first, again, other = (
            scan(replace(sensor, serial=serial), plane, seed) for serial, seed in ((1, 1), (1, 2), (2, 1))
        )
        assert np.array_equal(first.points, again.points)
        assert np.abs(depths_m(first) - depths_m(other)).max() > 0.00002
        deviations = [np.mean(depths_m(scan(replace(sensor, serial=serial), plane)) ** 2) for serial in range(30)]
        assert math.sqrt(np.mean(deviations)) == pytest.approx(0.0002, rel=0.25)


def test_depth_camera_loses_and_mixes_points_at_edges(plane: Scene) -> None:
    hole = with_cavity(plane, make_tie_hole(0.030, 0.030, 1.0))
    cloud = scan(replace(EXACT_CAMERA, width=730, height=411), hole)
    # Pixels are 0.86 mm wide: about 110 cross the 94 mm of rim. The projector, 50 mm aside, leaves 3 mm x 30 mm dark.
    assert 80 < 730 * 411 - len(cloud) < 400
    depth = depths_m(cloud)
    mixed = (depth > 0.004) & (depth < 0.026)
    assert mixed.any()
    assert depth.max() == pytest.approx(0.030, abs=1e-4)


def test_profiler_does_not_see_into_its_shadow(plane: Scene) -> None:
    hole = with_cavity(plane, make_tie_hole(0.040, 0.030, 1.0))
    x, depth, z = scan(EXACT_PROFILER, hole).points.T
    floor = (np.abs(depth - 0.030) < 1e-4) & (np.abs(x - MIDDLE[0]) < 0.002)
    low, high = z[floor].min() - (MIDDLE[1] - 0.020), (MIDDLE[1] + 0.020) - z[floor].max()
    # Optical y points down. The camera, 150 mm below the laser, sees 30 / 530 * 150 mm less of the floor below ...
    shadow = 0.030 / 0.5 * 0.150 * 0.5  # ... at least half of that
    assert low > shadow
    assert high < 0.002


def test_lidar_offset_is_common_to_a_scan_and_new_in_the_next(plane: Scene) -> None:
    sensor = replace(EXACT_LIDAR, bias_m=0.004, points=500, field_of_view_deg=4.0)
    offsets = np.array([np.mean(depths_m(scan(sensor, plane, seed))) for seed in range(200)])
    spreads = [np.std(depths_m(scan(sensor, plane, seed))) for seed in range(5)]
    assert np.std(offsets) == pytest.approx(0.004, rel=0.15)
    assert max(spreads) < 1e-5


def test_lidar_ranges_are_late_on_dark_surfaces(plane: Scene) -> None:
    sensor = replace(EXACT_LIDAR, walk_m=0.005, field_of_view_deg=4.0)
    bright = scan(sensor, plane)
    assert bright.intensity is not None
    expected = 0.005 * (1.0 - np.mean(bright.intensity) / 255.0)
    assert np.mean(depths_m(bright)) == pytest.approx(expected, rel=0.01)


def test_lidar_beam_fills_small_holes(plane: Scene) -> None:
    hole = with_cavity(plane, make_tie_hole(0.005, 0.010, 1.0))
    depth = depths_m(scan(replace(EXACT_LIDAR, points=20_000, field_of_view_deg=6.0), hole))
    assert 0.002 < depth.max() < 0.009


def test_lidar_drops_points(plane: Scene) -> None:
    cloud = scan(replace(EXACT_LIDAR, dropout_ratio=0.25, field_of_view_deg=30.0), plane)
    assert len(cloud) == pytest.approx(0.75 * 50_000, rel=0.02)


def test_rosette_stays_in_its_field_and_never_repeats(plane: Scene) -> None:
    sensor = replace(EXACT_LIDAR, field_of_view_deg=40.0)
    first, second = (scan(sensor, plane, seed).points for seed in (1, 2))
    angle = np.arccos(DISTANCE_M / np.linalg.norm(first - POSITION, axis=1))
    assert math.radians(19.9) < angle.max() <= math.radians(20.0) + 1e-3
    assert np.abs(first[:100] - second[:100]).max() > 0.01


def test_spinning_lidar_has_its_rings(plane: Scene) -> None:
    sensor = replace(EXACT_LIDAR, pattern='spinning', rings=32, ring_fov_deg=40.0, points=32 * 1024)
    offsets = scan(sensor, plane).points - POSITION
    elevation = np.degrees(np.arctan2(offsets[:, 2], np.hypot(offsets[:, 0], offsets[:, 1])))
    expected = np.linspace(-20.0, 20.0, 32)
    ring = np.abs(elevation[:, None] - expected).argmin(axis=1)
    assert set(ring) == set(range(32))
    assert np.abs(elevation - expected[ring]).max() < 0.01


@pytest.mark.parametrize('name', SENSORS)
def test_same_seed_same_cloud_and_another_seed_another(name: str, plane: Scene) -> None:
    sensor = make_sensor(name)
    first, again, other = (scan(sensor, plane, seed).points for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


@pytest.mark.parametrize('name', SENSORS)
def test_sees_nothing_when_it_looks_away(name: str, plane: Scene) -> None:
    sensor = make_sensor(name)
    if isinstance(sensor, TofLidar):
        T_scene_sensor = SE3(T_SCENE_LIDAR.rotation @ np.diag([-1.0, -1.0, 1.0]), POSITION)
    else:
        T_scene_sensor = SE3(T_SCENE_OPTICAL.rotation @ np.diag([-1.0, 1.0, -1.0]), POSITION)
    cloud = sensor.scan(plane, T_scene_sensor, np.random.default_rng(0))
    assert cloud.points.shape == (0, 3)
    assert cloud.intensity is not None


@pytest.mark.parametrize('name', SENSORS)
def test_intensity_is_that_of_the_wall(name: str, plane: Scene) -> None:
    intensity = scan(make_sensor(name), plane).intensity
    assert intensity is not None
    assert intensity.dtype == np.float32
    assert 255.0 * 0.05 < np.median(intensity) < 255.0 * 0.9


def test_sensors_are_made_by_name() -> None:
    assert make_sensor('line_profiler', 0.0001) == LineProfiler(range_noise_m=0.0001)
    described = describe_sensor(make_sensor('tof_lidar'))
    assert (described['kind'], described['frame_id'], described['range_noise_m']) == ('TofLidar', 'lidar_frame', 0.02)
    with pytest.raises(SceneError, match='unknown sensor "radar"; there are depth_camera'):
        make_sensor('radar')
    with pytest.raises(SceneError, match='range noise'):
        make_sensor('tof_lidar', -0.01)


def test_unknown_scan_pattern_is_refused(plane: Scene) -> None:
    with pytest.raises(SceneError, match='unknown scan pattern "zigzag"'):
        scan(TofLidar(pattern='zigzag'), plane)  # type: ignore[arg-type]
