from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np

from cmml_ros.calibration import CalibrationCheck, CalibrationStatus
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.closeup import CloseupMaker
from cmml_ros.mapping.record import FrameRecord
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.uncertainty import Budget

CAMERA = Camera(width=200, height=100, fx=200.0, fy=200.0, cx=99.5, cy=49.5, distortion=(0.1, 0.0, 0.0, 0.0))


def make_record() -> FrameRecord:
    """A cap of 20 mm and 5 mm depth, 0.2 m before the camera: 20 px wide."""
    grid = np.stack(np.meshgrid(np.arange(-0.05, 0.05, 0.001), np.arange(-0.03, 0.03, 0.001)), axis=-1).reshape(-1, 2)
    depths = np.maximum(0.005 * (1 - (grid**2).sum(axis=1) / 0.01**2), 0.0)
    points = np.column_stack([grid, 0.2 + depths])
    image = np.full((100, 200, 3), 150, np.uint8)
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    measurement = Measurement(
        area_status=Status.MEASURED,
        volume_status=Status.SHAPE_PRIOR,
        position=np.array([0.0, 0.0, 0.2]),
        normal=np.array([0.0, 0.0, -1.0]),
        outline=np.column_stack([0.01 * circle, np.full(20, 0.2)]),
        area_m2=1 / 3,
        equivalent_diameter_m=0.020,
        area_budget=Budget(noise=1e-9, boundary=2e-9),
        readings=CavityReadings(np.eye(3)[:2] / 3, np.arange(10, dtype=np.float32).reshape(2, 5) / 3, 1e-4, 1 / 3, 2),
    )
    defect = Defect(0, 0.9, (90, 40, 20, 20), 10 * circle + (99.5, 49.5), measurement)
    pose = SE3.from_rotation_vector([0.1, 0.2, 0.3], np.array([1.0, 2.0, 3.0]))
    frame = Frame(image, CAMERA, 7, 'camera', Cloud(points), 8, SE3.identity(), pose, 'late')
    closeup = CloseupMaker(frame, SE3.identity()).make(defect)
    check = CalibrationCheck(CalibrationStatus.DRIFTED, 'turned', np.arange(6.0), np.full(6, 1 / 3), 100, 0.7)
    return FrameRecord.of(frame, (defect,), (closeup,), 'small', SE3.identity(), check, {'network': 0.1})


def test_a_record_survives_the_disk_to_the_bit():
    record = make_record()
    text = json.dumps(record.to_document())
    back = FrameRecord.from_document(json.loads(text))
    assert json.dumps(back.to_document()) == text
    assert back.camera == record.camera
    assert back.defects[0].measurement.area_m2 == 1 / 3
    assert back.defects[0].measurement.area_budget == record.defects[0].measurement.area_budget
    readings, written = back.defects[0].measurement.readings, record.defects[0].measurement.readings
    np.testing.assert_array_equal(readings.axes, written.axes)
    np.testing.assert_array_equal(readings.rows, written.rows)
    assert (readings.rows.dtype, readings.noise_m, readings.spacing_m, readings.views) == (np.float32, 1e-4, 1 / 3, 2)
    assert back.defects[0].measurement.volume_status is Status.SHAPE_PRIOR
    assert back.calibration.status is CalibrationStatus.DRIFTED
    np.testing.assert_array_equal(back.calibration.std, np.full(6, 1 / 3))
    np.testing.assert_array_equal(back.T_camera_lidar.matrix, np.eye(4))
    np.testing.assert_array_equal(back.T_map_camera.matrix, record.T_map_camera.matrix)
    np.testing.assert_array_equal(back.closeups[0].section_m, record.closeups[0].section_m)


def test_a_closeup_makes_up_nothing_beyond_the_picture():
    record = make_record()
    image = np.zeros((100, 200, 3), np.uint8)
    frame = Frame(image, CAMERA, 7, 'camera')
    at_edge = dataclasses.replace(record.defects[0], roi=(0, 40, 20, 20))
    closeup = CloseupMaker(frame, None).make(at_edge)
    crop = cv2.imdecode(np.frombuffer(closeup.jpeg, np.uint8), cv2.IMREAD_COLOR)
    # 48 px of the picture are 96 of the crop, whose first 28 lie beyond its left edge.
    assert crop[:, :24].min() > 215
    assert crop[:, 32:].max() < 10


def test_a_closeup_shows_rim_and_section():
    closeup = make_record().closeups[0]
    assert closeup.rim.min() > 0.1
    assert closeup.rim.max() < 0.9
    assert np.allclose(closeup.rim.mean(axis=0), 0.5, atol=0.01)
    places, depths = closeup.section_m.T
    assert depths[np.abs(places).argmin()] > 0.0045
    assert abs(depths.max() - 0.005) < 2e-4
    assert np.abs(depths[np.abs(places) > 0.012]).max() < 1e-6
