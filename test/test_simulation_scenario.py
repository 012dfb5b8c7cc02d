"""A simulated robot: frames that repeat, transforms that agree, bags and data sets that others can read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.config import SyncConfig
from cmml_ros.errors import SceneError
from cmml_ros.geometry.cloud import project_cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.simulation.range_sensor import SENSORS
from cmml_ros.simulation.scenario import Scenario, SimulatedFrame, simulate_bag, simulate_dataset
from cmml_ros.stream.assembler import Assembler

KINDS = ('plane', 'column', 'tunnel')


@pytest.fixture(scope='module')
def scenario() -> Scenario:
    return Scenario(seed=4)


@pytest.fixture(scope='module')
def frames(scenario: Scenario) -> list[SimulatedFrame]:
    return [scenario.frame(0), scenario.frame(1)]


@pytest.fixture(scope='module')
def bag(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('bags') / 'new' / 'wall'
    simulate_bag(out, scenario, 2)
    return out


@pytest.mark.parametrize('kind', KINDS)
def test_camera_stays_at_its_distance_and_looks_at_the_wall(kind: str) -> None:
    scenario = Scenario(kind=kind, seed=2, distance_m=0.6)
    for elapsed_s in np.linspace(0.0, 2.0 * scenario.sweep_s, 23):
        T_map_camera = scenario.camera_pose(scenario.start_ns + round(elapsed_s * 1e9))
        hits = scenario.scene.cast(T_map_camera.translation[None], T_map_camera.rotation[:, 2][None])
        wall_m = np.linalg.norm(
            scenario.scene.wall.points(scenario.scene.wall.develop(T_map_camera.translation[None]))[0]
            - T_map_camera.translation
        )
        assert wall_m == pytest.approx(0.6, abs=0.006)
        assert hits.distance_m[0] >= wall_m - 1e-6
        assert (
            math.degrees(math.acos(-T_map_camera.rotation[:, 2] @ scenario.scene.wall.normals(hits.developed)[0])) < 5.0
        )


def test_camera_sees_nearly_all_of_the_wall_in_one_sweep_and_returns() -> None:
    scenario = Scenario(seed=2)
    seen = set()
    for elapsed_s in np.arange(0.0, scenario.sweep_s, 1.0):
        seen |= set(scenario.visible_airholes(scenario.camera_pose(scenario.start_ns + round(elapsed_s * 1e9))))
    # It keeps off the ends of the wall, which its swaying would show.
    assert len(seen) > 0.9 * len(scenario.scene.holes)
    there, back = (scenario._place(scenario.speed_m_s * (scenario.sweep_s + side)) for side in (-3.0, 3.0))
    assert np.allclose(there, back)


def test_speed_is_constant() -> None:
    scenario = Scenario(speed_m_s=0.08)
    places = np.array([scenario._place(0.08 * elapsed_s) for elapsed_s in np.arange(0.0, 60.0, 0.1)])
    steps_m = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert np.median(steps_m) == pytest.approx(0.008)
    assert steps_m.max() < 0.008 + 1e-9


def test_a_frame_is_the_same_on_its_own_and_another_seed_is_another(
    scenario: Scenario, frames: list[SimulatedFrame]
) -> None:
    again = Scenario(seed=4).frame(1)
    assert np.array_equal(frames[1].rendering.image, again.rendering.image)
    assert np.array_equal(frames[1].cloud.points, again.cloud.points)
    assert frames[1].cloud_stamp_ns == again.cloud_stamp_ns
    assert Scenario(seed=5).scene.holes[0].area_m2 != scenario.scene.holes[0].area_m2


def test_stamps_and_transforms_of_frames_follow_each_other(scenario: Scenario, frames: list[SimulatedFrame]) -> None:
    for frame in frames:
        assert frame.stamp_ns == scenario.start_ns + frame.index * 200_000_000
        assert 0.002 <= (frame.cloud_stamp_ns - frame.stamp_ns) * 1e-9 <= 0.004
        assert frame.transforms[0].stamp_ns <= frame.stamp_ns
        assert frame.cloud_stamp_ns <= frame.transforms[-1].stamp_ns
    edges = [edge for frame in frames for edge in frame.transforms]
    assert [(edge.parent, edge.child) for edge in edges[:2]] == [('map', 'odom'), ('odom', 'base_link')]
    assert set(np.diff([edge.stamp_ns for edge in edges[::2]])) == {10_000_000}


@pytest.mark.parametrize('sensor_name', SENSORS)
def test_transform_tree_places_the_points_on_the_wall(sensor_name: str) -> None:
    scenario = Scenario(sensor_name=sensor_name, seed=3, range_noise_m=0.0)
    stamp_ns = scenario.start_ns + 1_234_567_891
    edges = {edge.child: edge.T_parent_child for edge in (*scenario.transforms(stamp_ns), *scenario.static_transforms)}
    assert np.linalg.norm(scenario.extrinsic.translation) > 0.05
    T_map_sensor = edges['odom'] @ edges['base_link'] @ edges[scenario.sensor.frame_id]
    cloud = scenario.sensor.scan(scenario.scene, T_map_sensor, np.random.default_rng(0))
    assert np.median(T_map_sensor.apply(cloud.points)[:, 1]) == pytest.approx(
        0.0, abs=0.02 if 'tof' in sensor_name else 5e-4
    )
    T_map_camera = edges['odom'] @ edges['base_link'] @ edges['camera_optical_frame']
    assert np.allclose(T_map_camera.matrix, scenario.camera_pose(stamp_ns).matrix)
    projected = project_cloud(cloud, scenario.camera, scenario.extrinsic)
    middle = (np.abs(projected.pixels - (640, 360)) < (60, 60)).all(axis=1)
    assert middle.sum() > 100


def test_visible_airholes_are_those_in_the_labels(scenario: Scenario, frames: list[SimulatedFrame]) -> None:
    frame = frames[0]
    counts = np.bincount(np.maximum(frame.rendering.hole_ids, 0).ravel())
    visible = scenario.visible_airholes(frame.T_map_camera)
    assert len(visible) > 10
    for hole_id, diameter_px in visible.items():
        if diameter_px > 15.0:
            assert counts[hole_id] == pytest.approx(math.pi / 4.0 * diameter_px**2, rel=0.05)
    border = set(
        np.concatenate([frame.rendering.hole_ids[[0, -1]].ravel(), frame.rendering.hole_ids[:, [0, -1]].ravel()])
    )
    assert not border & set(visible)


def test_bag_holds_what_the_robot_sent(bag: Path, scenario: Scenario, frames: list[SimulatedFrame]) -> None:
    store = make_typestore()
    assembler = Assembler(SyncConfig())
    with Reader(bag) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts == {
            '/camera/image': 2, '/camera/camera_info': 2, '/lidar/points': 2, '/tf_static': 1,
            '/tf': counts['/tf'],
        }  # fmt: skip
        assert counts['/tf'] / (reader.duration * 1e-9) > 50.0
        received_ns = 0
        for connection, stamp_ns, data in reader.messages():
            assert stamp_ns >= received_ns
            received_ns = stamp_ns
            message = store.deserialize_cdr(data, connection.msgtype)
            match connection.topic:
                case '/camera/image':
                    assembler.add_image(message)
                case '/camera/camera_info':
                    assembler.add_camera_info(message)
                case '/lidar/points':
                    assembler.add_cloud(message)
                case topic:
                    assembler.add_transforms(message, static=topic == '/tf_static')
    received = assembler.flush()
    assert not assembler.errors
    assert len(received) == 2
    expected, frame = frames[1], received[1]
    assert np.array_equal(frame.image, expected.rendering.image)
    assert frame.camera == scenario.camera
    assert (frame.stamp_ns, frame.cloud_stamp_ns) == (expected.stamp_ns, expected.cloud_stamp_ns)
    assert frame.cloud is not None
    assert np.allclose(frame.cloud.points, expected.cloud.points, atol=1e-6)
    assert frame.T_map_camera is not None
    assert frame.T_camera_lidar is not None
    assert np.allclose(frame.T_map_camera.matrix, expected.T_map_camera.matrix, atol=1e-5)
    assert np.allclose(frame.T_camera_lidar.matrix, scenario.extrinsic.matrix, atol=1e-3)


def test_truth_lies_beside_the_bag(bag: Path, scenario: Scenario) -> None:
    truth = json.loads((bag / 'truth.json').read_text())
    assert truth['scenario']['seed'] == 4
    assert truth['sensor']['kind'] == 'DepthCamera'
    assert truth['package_version'].count('.') == 2
    assert len(truth['airholes']) == len(scenario.scene.holes) > 60
    hole = truth['airholes'][0]
    rim = np.array(hole['rim_m'])
    assert rim[:, 1] == pytest.approx(0.0)
    assert cv2.contourArea((rim[:, [0, 2]] * 1e3).astype(np.float32)) == pytest.approx(hole['area_m2'] * 1e6, rel=1e-3)
    assert hole['equivalent_diameter_m'] == pytest.approx(2.0 * math.sqrt(hole['area_m2'] / math.pi))
    assert 0.0 < hole['volume_m3'] <= hole['void_volume_m3'] * (1 + 1e-9)
    assert hole['volume_m3'] < hole['area_m2'] * hole['depth_max_m']
    assert [frame['stamp_ns'] - truth['scenario']['start_ns'] for frame in truth['frames']] == [
        0,
        200_000_000,
    ]
    pose = truth['frames'][1]['T_map_camera']
    T_map_camera = SE3.from_quaternion(pose['quaternion_xyzw'], pose['translation_m'])
    seen = {item['id']: item['diameter_px'] for item in truth['frames'][1]['airholes']}
    assert seen == pytest.approx(scenario.visible_airholes(T_map_camera), rel=1e-4)
    assert {'id', 'kind', 'outline_m'} == set(truth['distractors'][0])


def test_dataset_has_the_original_layout(tmp_path: Path) -> None:
    simulate_dataset(tmp_path, Scenario(seed=7), 2)
    names = ['000000.png', '000001.png']
    for folder in ('images', 'labels', 'depths'):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    read = {
        folder: [cv2.imread(str(tmp_path / folder / name), cv2.IMREAD_UNCHANGED) for name in names]
        for folder in ('images', 'labels', 'depths')
    }
    assert read['images'][0].shape == (720, 1280, 3)
    assert {picture.dtype for picture in (*read['labels'], *read['depths'])} == {np.dtype(np.uint16)}
    intrinsics = json.loads((tmp_path / 'intrinsics.json').read_text())
    assert (intrinsics['width'], intrinsics['depth_unit_m'], intrinsics['seeds']) == (1280, 0.0001, [7, 8])
    for labels, depths in zip(read['labels'], read['depths'], strict=True):
        wall_m = np.median(depths[labels == 0]) * intrinsics['depth_unit_m']
        assert wall_m == pytest.approx(0.5, abs=0.03)
        assert len(np.unique(labels)) > 5
    assert not np.array_equal(read['labels'][0], read['labels'][1])


def test_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'mine.txt').write_text('mine')
    for simulate in (simulate_bag, simulate_dataset):
        with pytest.raises(SceneError, match='not empty'):
            simulate(tmp_path, Scenario(), 1)
    with pytest.raises(SceneError, match='not empty'):
        simulate_bag(tmp_path / 'mine.txt', Scenario(), 1)
    with pytest.raises(SceneError, match='cannot be written'):
        simulate_bag(tmp_path / 'mine.txt' / 'wall', Scenario(), 1)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


@pytest.mark.parametrize(('field', 'value', 'reason'), [
    ('rate_hz', 0.0, r'rate_hz must be in \[0.1, 30\] Hz, got 0'),
    ('distance_m', 3.0, r'distance_m must be in \[0.2, 1\] m, got 3'),
    ('seed', -1, 'seed'),
    ('sensor_name', 'radar', 'unknown sensor "radar"'),
    ('kind', 'sphere', 'kind must be one of plane, column, tunnel'),
        ('look', 'nice', 'look must be one of fast, path'),
    ('range_noise_m', 5.0, 'range noise'),
])  # fmt: skip
def test_bad_fields_are_refused(field: str, value: object, reason: str) -> None:
    with pytest.raises(SceneError, match=reason):
        replace(Scenario(), **{field: value})


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match='positive'):
        simulate_bag(tmp_path / 'wall', Scenario(), 0)
    assert not (tmp_path / 'wall').exists()
