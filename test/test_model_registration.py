import math
import tracemalloc

import numpy as np
import pytest

from cmml_ros.calibration import CalibrationStatus
from cmml_ros.config import InspectorConfig, RegistrationConfig
from cmml_ros.errors import PoseError
from cmml_ros.frame import Frame
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.inspector import Inspector
from cmml_ros.measurement.defect import Status
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.matcher import OpenVinoMatcher
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.registration import Registrar
from cmml_ros.model.torch_engine import TorchMatcher
from cmml_ros.simulation.scenario import Scenario

WRONG = SE3.from_rotation_vector((0.03, -0.04, 0.05), (0.02, -0.02, 0.015))  # 4 degrees, 32 mm


def make_frame(sensor: str) -> Frame:
    scenario = Scenario(sensor_name=sensor, seed=6006)
    frame = scenario.frame(60)
    T_camera_lidar = frame.T_map_camera.inverse() @ scenario.camera_pose(frame.cloud_stamp_ns) @ scenario.extrinsic
    return Frame(
        frame.rendering.image,
        scenario.camera,
        frame.stamp_ns,
        'camera_optical_frame',
        frame.cloud,
        frame.cloud_stamp_ns,
        T_camera_lidar,
        frame.T_map_camera,
    )


@pytest.fixture(scope='module')
def close() -> Frame:
    return make_frame('depth_camera')


@pytest.fixture(scope='module')
def far() -> Frame:
    return make_frame('tof_lidar')


@pytest.fixture(scope='module')
def network() -> MultitaskNetwork:
    return load_network(find_weights('small'))[0]


@pytest.fixture(scope='module')
def registrar(network: MultitaskNetwork) -> Registrar:
    return Registrar(OpenVinoMatcher(lambda: network, 1), RegistrationConfig())


def rmse_m(found: SE3, frame: Frame) -> float:
    assert frame.cloud is not None
    assert frame.T_camera_lidar is not None
    off = found.apply(frame.cloud.points) - frame.T_camera_lidar.apply(frame.cloud.points)
    return math.sqrt(float((off**2).sum(axis=1).mean()))


def test_a_wrong_extrinsic_of_a_depth_camera_is_corrected(registrar: Registrar, close: Frame):
    start = WRONG @ close.T_camera_lidar
    assert rmse_m(start, close) > 0.02
    found = registrar.refine(close.image, close.camera, close.cloud, start)
    assert rmse_m(found.T_camera_lidar, close) < 0.003
    assert found.match_count > 1000
    # What it says of the correction is right within what it says of its deviation.
    error = found.correction - np.concatenate(
        [WRONG.inverse().rotation_vector, (close.T_camera_lidar @ start.inverse()).translation]
    )
    assert (np.abs(error) < 5.0 * np.sqrt(np.diag(found.covariance))).all()
    again = registrar.refine(close.image, close.camera, close.cloud, start)
    assert np.array_equal(again.T_camera_lidar.matrix, found.T_camera_lidar.matrix)


def test_a_wrong_extrinsic_of_a_lidar_is_corrected(registrar: Registrar, far: Frame):
    found = registrar.refine(far.image, far.camera, far.cloud, WRONG @ far.T_camera_lidar)
    assert rmse_m(found.T_camera_lidar, far) < 0.010


def test_without_any_extrinsic_it_is_found(registrar: Registrar, close: Frame):
    found = registrar.match(close.image, close.camera, close.cloud)
    assert rmse_m(found.T_camera_lidar, close) < 0.015
    assert found.correction is None
    # A sensor frame of another convention, x forward, is no hindrance.
    T_turned = SE3(np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), np.zeros(3))
    turned = Cloud(T_turned.inverse().apply(close.cloud.points), close.cloud.intensity)
    found = registrar.match(close.image, close.camera, turned)
    assert rmse_m(found.T_camera_lidar @ T_turned.inverse(), close) < 0.015


def test_torch_finds_the_same_pose(registrar: Registrar, network: MultitaskNetwork, close: Frame):
    start = WRONG @ close.T_camera_lidar
    reference = Registrar(TorchMatcher(network), RegistrationConfig())
    found, expected = (each.refine(close.image, close.camera, close.cloud, start) for each in (registrar, reference))
    np.testing.assert_array_equal(found.matched_points, expected.matched_points)
    np.testing.assert_allclose(found.matched_pixels, expected.matched_pixels, atol=1e-3)
    np.testing.assert_allclose(found.T_camera_lidar.matrix, expected.T_camera_lidar.matrix, atol=1e-5)


def test_what_cannot_be_matched_is_refused(registrar: Registrar, close: Frame):
    black = np.zeros_like(close.image)
    with pytest.raises(PoseError):
        registrar.refine(black, close.camera, close.cloud, close.T_camera_lidar)
    with pytest.raises(PoseError, match='0 points'):
        registrar.match(close.image, close.camera, Cloud(np.empty((0, 3))))
    plane = close.cloud.points.copy()
    plane[:, 2] = 0.5  # a bare wall: no relief and no intensity
    with pytest.raises(PoseError):
        registrar.refine(close.image, close.camera, Cloud(plane), close.T_camera_lidar)
    behind = SE3.from_rotation_vector((0.0, math.pi, 0.0), np.zeros(3))
    with pytest.raises(PoseError, match='outside the picture'):
        registrar.refine(close.image, close.camera, close.cloud, behind @ close.T_camera_lidar)


def test_points_that_lie_evenly_all_around_are_refused(registrar: Registrar, close: Frame):
    around = Cloud(np.concatenate([close.cloud.points, -close.cloud.points]))
    for T_given in (close.T_camera_lidar, SE3.identity()):
        with pytest.raises(PoseError, match='evenly all around'):
            registrar.refine(close.image, close.camera, around, T_given)
    with pytest.raises(PoseError, match='evenly all around'):
        registrar.match(close.image, close.camera, around)


def test_a_sweep_all_around_is_refused_in_little_memory(registrar: Registrar, close: Frame):
    # As of a spinning LiDAR in a room: directions at right angles to where most points lie have no end of a tangent.
    rng = np.random.default_rng(2)
    azimuth, elevation = rng.uniform(-np.pi, np.pi, 40_000), rng.uniform(-0.4, 0.3, 40_000)
    rays = np.column_stack([np.cos(azimuth), np.sin(azimuth), np.tan(elevation)])
    room = Cloud(rays * np.minimum(4.0 / np.abs(rays[:, :2]).max(axis=1), 3.0 / np.abs(rays[:, 2]))[:, None])
    tracemalloc.start()
    try:
        with pytest.raises(PoseError):
            registrar.refine(close.image, close.camera, room, SE3.identity())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 300e6


def inspect(frame: Frame, mode: str, T_camera_lidar: SE3 | None, count: int = 1):
    inspector = Inspector(InspectorConfig(registration=RegistrationConfig(mode=mode, check_period_s=1.0)))
    for number in range(count):
        inspection = inspector.inspect(
            Frame(
                frame.image,
                frame.camera,
                frame.stamp_ns + number * 2_000_000_000,
                frame.frame_id,
                frame.cloud,
                frame.cloud_stamp_ns,
                T_camera_lidar,
                transform_reason='' if T_camera_lidar else 'no edge from camera to lidar',
            )
        )
    return inspection


def measured(inspection):
    return [d.measurement for d in inspection.defects if d.measurement.volume_status is Status.MEASURED]


@pytest.mark.slow
def test_registered_points_measure_like_rightly_given_ones(close: Frame):
    right = measured(inspect(close, 'tf', close.T_camera_lidar))
    assert len(right) >= 5
    for mode, given in (('refine', WRONG @ close.T_camera_lidar), ('match', None)):
        found = measured(inspect(close, mode, given))
        ratios = [
            mine.volume_m3 / its.volume_m3
            for its in right
            for mine in found
            if np.linalg.norm(mine.position - its.position) < 0.003
        ]
        assert len(ratios) >= 0.7 * len(right), mode
        assert np.median(ratios) == pytest.approx(1.0, abs=0.05), mode


@pytest.mark.slow
def test_the_extrinsic_is_checked_in_every_mode(close: Frame):
    assert inspect(close, 'tf', close.T_camera_lidar, 4).calibration.status is CalibrationStatus.CONSISTENT
    drifted = inspect(
        close, 'tf', SE3.from_rotation_vector((0.0, 0.0, 0.02), (0.0, 0.01, 0.0)) @ close.T_camera_lidar, 4
    )
    assert drifted.calibration.status is CalibrationStatus.DRIFTED
    assert 'calibrate again' in drifted.calibration.reason
    assert inspect(close, 'refine', WRONG @ close.T_camera_lidar, 3).calibration.status is CalibrationStatus.DRIFTED
    assert inspect(close, 'match', None).calibration.status is CalibrationStatus.NO_TRANSFORM
    missing = inspect(close, 'tf', None)
    assert missing.calibration.status is CalibrationStatus.NO_TRANSFORM
    assert missing.calibration.reason == 'no edge from camera to lidar'


def test_an_unregistered_cloud_is_no_zero(close: Frame):
    dark = Frame(
        np.zeros_like(close.image), close.camera, close.stamp_ns, close.frame_id, close.cloud, close.cloud_stamp_ns
    )
    inspection = inspect(dark, 'match', None)
    assert inspection.T_camera_lidar is None
    assert inspection.calibration.status is CalibrationStatus.DEGENERATE
    assert all(defect.measurement.area_status is Status.NO_TRANSFORM for defect in inspection.defects)
