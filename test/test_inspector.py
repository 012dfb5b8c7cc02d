"""The pipeline on simulated walls, with the weights that are shipped."""

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from cmml_ros.analyze import analyze
from cmml_ros.config import DetectionConfig, InspectorConfig, RegistrationConfig
from cmml_ros.errors import ShapeError
from cmml_ros.frame import Frame
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3
from cmml_ros.inspector import Inspector, is_reported
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.model.registration import Registrar
from cmml_ros.simulation.scenario import Scenario, simulate_bag

# A blob this close to the image's place of a true airhole is that airhole.
REACH_PX = 6.0


@pytest.fixture(scope='module')
def inspector() -> Inspector:
    return Inspector(InspectorConfig(detection=DetectionConfig(device='cpu')))


def make_frame(scenario: Scenario, index: int = 0) -> Frame:
    simulated = scenario.frame(index)
    return Frame(
        image=simulated.rendering.image,
        camera=scenario.camera,
        stamp_ns=simulated.stamp_ns,
        frame_id='camera_optical_frame',
        cloud=simulated.cloud,
        cloud_stamp_ns=simulated.cloud_stamp_ns,
        T_camera_lidar=scenario.extrinsic,
        T_map_camera=simulated.T_map_camera,
    )


def find(defects: tuple[Defect, ...], pixel: np.ndarray) -> Defect | None:
    for defect in defects:
        if np.hypot(*(defect.outline_px.mean(axis=0) - pixel)) < REACH_PX:
            return defect
    return None


def pair(scenario: Scenario, frame: Frame, defects: tuple[Defect, ...], min_diameter_m: float) -> list[tuple]:
    """(truth, defect or None) of the airholes that the frame shows well inside."""
    pairs = []
    for hole in scenario.scene.holes:
        assert frame.T_map_camera is not None
        pixels, visible = frame.camera.project(frame.T_map_camera.inverse().apply(hole.rim))
        inner = visible.all() and pixels.min() > 10 and (pixels < [1270, 710]).all()
        if inner and hole.equivalent_diameter_m >= min_diameter_m:
            pairs.append((hole, find(defects, pixels.mean(axis=0))))
    return pairs


def test_frames_in_work_at_once_say_what_each_alone_does(inspector: Inspector):
    scenario = Scenario(sensor_name='depth_camera', seed=11)
    frames = [make_frame(scenario, index) for index in range(3)]
    alone = [inspector.inspect(frame) for frame in frames]
    together = [begun.result() for begun in [inspector.begin(frame) for frame in frames]]
    for one, other in zip(alone, together, strict=True):
        assert other.frame is one.frame
        np.testing.assert_equal(
            [astuple(d.measurement) for d in other.defects], [astuple(d.measurement) for d in one.defects]
        )


def test_a_frame_that_cannot_be_registered_fails_where_its_result_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    inspector = Inspector(InspectorConfig(registration=RegistrationConfig(mode='refine')))
    frame = make_frame(Scenario(sensor_name='depth_camera', seed=11))

    def fail(*_: object) -> None:
        raise ShapeError('not this one')

    with monkeypatch.context() as patched:
        patched.setattr(Registrar, 'refine', fail)
        begun = inspector.begin(frame)
    with pytest.raises(ShapeError, match='not this one'):
        begun.result()


def test_a_depth_camera_finds_and_measures_airholes(inspector: Inspector):
    areas, volumes = [], []
    for seed in (11, 12):
        scenario = Scenario(sensor_name='depth_camera', seed=seed)
        frame = make_frame(scenario)
        inspection = inspector.inspect(frame)
        pairs = pair(scenario, frame, inspection.defects, min_diameter_m=0.005)
        assert len(pairs) >= 8
        found = [(hole, defect.measurement) for hole, defect in pairs if defect is not None]
        assert len(found) >= 0.9 * len(pairs)
        areas += [m.area_m2 / hole.area_m2 for hole, m in found if m.area_status is Status.MEASURED]
        volumes += [m.volume_m3 / hole.volume_m3 for hole, m in found if m.volume_status is Status.MEASURED]
        assert set(inspection.timings_s) == {'match', 'project', 'network', 'measure'}
    assert np.median(np.abs(np.array(areas) - 1.0)) < 0.05
    assert len(volumes) >= 6
    assert np.median(np.abs(np.array(volumes) - 1.0)) < 0.08


def test_what_the_network_doubts_is_reported_where_its_volume_is_measured():
    sized = Measurement(Status.MEASURED, Status.MEASURED, area_m2=1e-4, equivalent_diameter_m=0.011, volume_m3=2e-7)
    unseen = replace(sized, volume_status=Status.NO_POINTS)
    flat = replace(sized, volume_status=Status.BELOW_DETECTION_LIMIT, volume_upper_bound_m3=1e-9)
    config = InspectorConfig()
    for confidence, measurement, reported in (
        (0.6, sized, True),
        (0.6, unseen, False),
        (0.8, unseen, True),
        (0.4, sized, False),
        (0.9, flat, False),
    ):
        mask = InstanceMask(np.ones((5, 5), np.float32), 10, 10, confidence)
        assert is_reported(mask, measurement, config) is reported


def test_a_registration_that_is_worse_makes_volumes_less_certain(monkeypatch: pytest.MonkeyPatch):
    scenario = Scenario(sensor_name='depth_camera', seed=11)
    frame = make_frame(scenario)
    refining = Inspector(
        InspectorConfig(detection=DetectionConfig(device='cpu'), registration=RegistrationConfig(mode='refine'))
    )
    registration = refining._registrar.refine(frame.image, frame.camera, frame.cloud, scenario.extrinsic)
    shares = []
    for point_std_m in (registration.point_std_m, 0.005):
        found = replace(registration, point_std_m=point_std_m)
        monkeypatch.setattr(refining._registrar, 'refine', lambda *_, found=found: found)
        budgets = [d.measurement.volume_budget for d in refining.inspect(frame).defects]
        measured = [budget for budget in budgets if budget is not None and budget.calibration > 0.0]
        assert len(measured) >= 3
        shares.append(np.median([budget.calibration for budget in measured]))
    assert shares[1] / shares[0] == pytest.approx((0.005 / registration.point_std_m) ** 2, rel=0.2)


def test_a_time_of_flight_lidar_scales_areas_and_measures_no_volume(inspector: Inspector):
    scenario = Scenario(sensor_name='tof_lidar', seed=11)
    frame = make_frame(scenario)
    defects = inspector.inspect(frame).defects
    pairs = pair(scenario, frame, defects, min_diameter_m=0.005)
    areas = [d.measurement.area_m2 / hole.area_m2 for hole, d in pairs if d is not None]
    assert np.nanmedian(np.abs(np.array(areas) - 1.0)) < 0.1
    assert all(defect.measurement.volume_status is not Status.MEASURED for defect in defects)
    assert all(np.isnan(defect.measurement.volume_m3) for defect in defects)


def test_what_is_missing_is_a_status_and_a_reason_not_a_zero(inspector: Inspector):
    frame = make_frame(Scenario(seed=11))
    for changes, status, reason in (
        ({'cloud': None, 'cloud_stamp_ns': None}, Status.NO_POINTS, 'no cloud came with this image'),
        ({'T_camera_lidar': None, 'transform_reason': 'base_link -> lidar: unknown'}, Status.NO_TRANSFORM, 'base_link'),
    ):
        inspection = inspector.inspect(replace(frame, **changes))
        assert inspection.defects
        for defect in inspection.defects:
            assert defect.measurement.volume_status is status
            assert reason in defect.measurement.reason
            assert np.isnan(defect.measurement.area_m2)


def test_a_black_picture_and_an_empty_cloud_are_harmless(inspector: Inspector):
    frame = make_frame(Scenario(seed=11))
    assert inspector.inspect(replace(frame, image=np.zeros_like(frame.image))).defects is not None
    assert frame.cloud is not None
    empty = replace(frame, cloud=replace(frame.cloud, points=np.empty((0, 3)), intensity=None))
    inspection = inspector.inspect(empty)
    assert inspection.points_reason.startswith('the cloud has no returns')
    assert inspection.defects
    for defect in inspection.defects:
        assert defect.measurement.volume_status is Status.NO_POINTS
        assert np.isnan(defect.measurement.volume_m3)


def test_points_that_cannot_be_those_of_the_picture_are_explained(inspector: Inspector):
    frame = make_frame(Scenario(seed=11))
    assert inspector.inspect(frame).points_reason == ''
    assert frame.cloud is not None
    assert frame.T_camera_lidar is not None
    millimetres = replace(frame, cloud=replace(frame.cloud, points=frame.cloud.points * 1000.0))
    body_axes = SE3(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), np.zeros(3))
    turned = replace(frame, T_camera_lidar=body_axes @ frame.T_camera_lidar)
    for changed, reason in (
        (millimetres, 'does the driver send millimetres?'),
        (turned, f'none of the {len(frame.cloud)} points lies in the picture; check the transform'),
    ):
        inspection = inspector.inspect(changed)
        assert reason in inspection.points_reason
        assert inspection.defects
        for defect in inspection.defects:
            assert defect.measurement.area_status is Status.NO_POINTS
            assert defect.measurement.reason == inspection.points_reason
            assert np.isnan(defect.measurement.area_m2)


@pytest.mark.slow
def test_the_same_bag_gives_the_same_bytes(tmp_path: Path):
    simulate_bag(tmp_path / 'wall', Scenario(seed=12), 2)
    config = InspectorConfig(detection=DetectionConfig(device='cpu'))
    for name in ('first', 'second'):
        analyze(tmp_path / 'wall', tmp_path / name, config)
    for table in ('defects.csv', 'observations.csv', 'defects.geojson'):
        first = (tmp_path / 'first' / table).read_bytes()
        assert first == (tmp_path / 'second' / table).read_bytes()
        assert len(first) > 500
