import math
from dataclasses import replace

import numpy as np
import pytest

from cmml_ros.config import InspectorConfig
from cmml_ros.errors import PoseError
from cmml_ros.evaluation.baselines import find_dark_blobs, register_by_information
from cmml_ros.evaluation.network import (
    RegistrationSample,
    TestFrame,
    assess_drift,
    assess_registration,
    assess_segmentation,
    summarise_registration,
)
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3
from cmml_ros.model.registration import Registration

CAMERA = Camera(160, 120, 200.0, 200.0, 79.5, 59.5)


def disc(u: float, v: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[0:120, 0:160]
    return np.hypot(columns - u, rows - v) < radius


def mask_of(area: np.ndarray, confidence: float = 0.9) -> InstanceMask:
    return InstanceMask(area.astype(np.float32), 0, 0, confidence)


@pytest.fixture
def frame() -> TestFrame:
    """Two airholes of 20 and 30 px, one of 5 px, a painted spot of 12 px, and a cloud on a wall."""
    ids = np.zeros((120, 160), np.int32)
    ids[disc(40, 40, 10.0)], ids[disc(110, 70, 15.0)], ids[disc(80, 20, 2.5)] = 1, 2, 3
    image = np.full((120, 160, 3), 180, np.uint8)
    image[ids > 0] = 20
    rng = np.random.default_rng(1)
    pixels = rng.uniform((0, 0), (159, 119), (3000, 2))
    points = CAMERA.rays(pixels) * 0.5
    column, row = np.rint(pixels).astype(int).T
    intensity = image[row, column, 0].astype(np.float32) + rng.normal(0.0, 2.0, 3000).astype(np.float32)
    return TestFrame(
        image,
        CAMERA,
        ids,
        {1: 20.0, 2: 30.0, 3: 5.0},
        {1: 10.0, 2: 15.0, 3: 2.5},
        [('painted_spot', disc(30, 90, 6.0))],
        Cloud(points, intensity),
        SE3.identity(),
    )


def test_exact_masks_are_perfect(frame: TestFrame):
    result = assess_segmentation([frame], lambda view: [mask_of(view.hole_ids == k) for k in (1, 2, 3)])
    assert result['pixel_iou'] == result['ap50'] == result['ap50_95'] == result['rim_f1'] == 1.0
    assert result['recall_by_diameter_px']['20'] == 1.0
    assert result['false_alarms'] == {'painted_spot': {'seen': 1, 'called': 0, 'seen_ranged': 1, 'called_ranged': 0}}
    assert result['false_blobs_a_frame'] == 0.0


def test_what_is_missed_and_what_is_made_up_is_counted(frame: TestFrame):
    large, spot = frame.hole_ids == 2, frame.distractors[0][1]
    result = assess_segmentation([frame], lambda _: [mask_of(large), mask_of(spot, 0.8)])
    small_px, large_px, spot_px = int((frame.hole_ids == 1).sum()), int(large.sum()), int(spot.sum())
    assert result['pixel_iou'] == pytest.approx(large_px / (small_px + large_px + spot_px))
    assert result['ap50'] == pytest.approx(51 / 101)  # half of the recall at full precision, in 101 steps
    assert result['recall_by_diameter_px'] == {'3': None, '5': 0.0, '8': None, '12': None, '20': 0.5, '40': None}
    assert result['false_alarms']['painted_spot']['called'] == 1
    assert result['false_blobs_a_frame'] == 1.0


def test_spots_beside_the_points_are_told_from_those_with_points(frame: TestFrame):
    pixels, _ = CAMERA.project(frame.cloud.points)
    beside = replace(frame, cloud=Cloud(frame.cloud.points[pixels[:, 0] > 60.0]))
    spot = mask_of(frame.distractors[0][1])
    assert assess_segmentation([frame, beside], lambda _: [spot])['false_alarms']['painted_spot'] == {
        'seen': 2,
        'called': 2,
        'seen_ranged': 1,
        'called_ranged': 1,
    }


def test_doubtful_masks_count_for_the_ranking_alone(frame: TestFrame):
    masks = [mask_of(frame.hole_ids == 1), mask_of(frame.hole_ids == 2, 0.3)]
    result = assess_segmentation([frame], lambda _: masks, confidence=0.5)
    assert result['ap50'] == 1.0
    assert result['recall_by_diameter_px']['20'] == 0.5


def test_nothing_found_is_no_error(frame: TestFrame):
    result = assess_segmentation([frame], lambda _: [])
    assert result['pixel_iou'] == result['ap50'] == result['rim_f1'] == 0.0


def test_registrations_are_held_against_the_truth(frame: TestFrame):
    def refuse(_: TestFrame, __: SE3) -> SE3:
        raise PoseError('no')

    exact = summarise_registration(assess_registration([frame], lambda view, _: view.T_camera_lidar, seed=1))
    assert exact['recall']['3 mm'] == 1.0
    assert exact['median_rmse_mm'] == 0.0
    idle = assess_registration([frame], lambda _, start: start, seed=1)
    assert idle[0].rmse_m == idle[0].start_rmse_m > 0.005
    refused = summarise_registration(assess_registration([frame], refuse, seed=1))
    assert refused['refused'] == 1
    assert refused['recall']['100 mm'] == 0.0


def test_what_is_left_over_is_that_of_the_data_alone(frame: TestFrame):
    # The data say how much the extrinsic is off; what comes of it together with the prior stops half-way.
    def halve(view: TestFrame, start: SE3) -> Registration:
        wrong = start @ view.T_camera_lidar.inverse()
        correction = np.concatenate([wrong.inverse().rotation_vector, wrong.inverse().translation])
        half = SE3.from_rotation_vector(0.5 * correction[:3], 0.5 * correction[3:]) @ start
        covariance = 1e-6 * np.eye(6)
        return Registration(half, np.arange(1), np.zeros((1, 2)), 0.9, 0.001, correction, covariance, covariance)

    (sample,) = assess_registration([frame], halve, seed=1)
    assert sample.rmse_m > 0.002
    assert sample.error is not None
    assert np.allclose(sample.error.matrix, np.eye(4), atol=1e-9)


def make_sample(error: np.ndarray, std: float) -> RegistrationSample:
    found = Registration(
        SE3.identity(),
        np.arange(100),
        np.zeros((100, 2)),
        0.9,
        0.001,
        np.zeros(6),
        std**2 * np.eye(6),
        1e-12 * np.eye(6),
    )
    return RegistrationSample(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, found, SE3.from_rotation_vector(error[:3], error[3:]))


def test_where_every_frame_is_refused_drift_is_not_known():
    refused = RegistrationSample(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, None, None)
    assert assess_drift([refused], InspectorConfig(), seed=1) == {
        'noticed_1_deg': None,
        'noticed_2_cm': None,
        'made_up': None,
    }


def test_drift_is_noticed_and_not_made_up():
    rng = np.random.default_rng(1)
    samples = [make_sample(rng.normal(0.0, 0.001, 6), 0.001) for _ in range(400)]
    shares = assess_drift(samples, InspectorConfig(), seed=1)
    assert shares['noticed_1_deg'] == shares['noticed_2_cm'] == 1.0
    assert shares['made_up'] < 0.02
    # Errors three times as large as they claim to be: drift is made up all the time.
    wrong = [make_sample(3.0 * rng.normal(0.0, 0.001, 6), 0.001) for _ in range(50)]
    assert assess_drift(wrong, InspectorConfig(), 1)['made_up'] > 0.5


def test_the_classical_baselines_do_what_they_can(frame: TestFrame):
    blobs = find_dark_blobs(frame.image)
    centres = sorted(
        (
            round(float((np.nonzero(b.coverage)[1] + b.left).mean())),
            round(float((np.nonzero(b.coverage)[0] + b.top).mean())),
        )
        for b in blobs
        if b.equivalent_diameter_px > 10
    )
    assert [math.dist(a, b) < 3 for a, b in zip(centres, [(40, 40), (110, 70)], strict=True)] == [True, True]
    start = SE3.from_rotation_vector((0.0, 0.0, 0.02), (0.006, -0.004, 0.0))
    found = register_by_information(frame.image, frame.camera, frame.cloud, start, np.random.default_rng(1))
    right, _ = frame.camera.project(frame.cloud.points)
    moved, wrong = (
        np.nanmean(np.linalg.norm(frame.camera.project(T.apply(frame.cloud.points))[0] - right, axis=1))
        for T in (found, start)
    )
    assert wrong > 2.0
    assert moved < 0.6 * wrong
