import math

import numpy as np
import pytest

from cmml_ros.calibration import NOT_CHECKED, CalibrationCheck, CalibrationMonitor, CalibrationStatus
from cmml_ros.config import RegistrationConfig
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.report.calibration import Calibration

STD = np.array([0.001, 0.001, 0.001, 0.001, 0.001, 0.001])
COVARIANCE = np.diag(STD**2)
PERIOD_NS = 200_000_000


def run(corrections: list[np.ndarray], **settings: float) -> list[CalibrationStatus]:
    monitor = CalibrationMonitor(RegistrationConfig(**settings))
    return [
        monitor.add(correction, COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, PERIOD_NS * number).status
        for number, correction in enumerate(corrections)
    ]


def test_noise_about_zero_is_consistent():
    rng = np.random.default_rng(1)
    statuses = run([rng.normal(0.0, STD) for _ in range(200)])
    assert statuses.count(CalibrationStatus.DRIFTED) <= 2


def test_a_drift_is_believed_after_some_frames_and_told_in_words():
    drift = np.array([math.radians(1.0), 0.0, 0.0, 0.0, 0.0, 0.0])
    assert run([drift] * 4) == [CalibrationStatus.NOT_CHECKED] * 2 + [CalibrationStatus.DRIFTED] * 2
    monitor = CalibrationMonitor(RegistrationConfig(frames_to_believe=1))
    check = monitor.add(drift, COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, 0)
    assert 'turned by 1.00 degrees' in check.reason
    assert check.correction[0] == pytest.approx(math.radians(1.0))
    assert check.match_count == 1000


def test_what_few_frames_contradict_is_in_doubt_and_not_said_to_agree():
    monitor = CalibrationMonitor(RegistrationConfig())
    turned = np.array([0.0, math.radians(7.0), 0.0, 0.064, 0.0, 0.0])
    check = monitor.add(turned, COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, 0)
    assert (check.status, check.in_doubt) == (CalibrationStatus.NOT_CHECKED, True)
    expected = 'turned by 7.00 degrees and moved by 64.0 mm against /tf, in 1 of the 3 frames that make it sure'
    assert check.reason.endswith(expected)
    assert not NOT_CHECKED.in_doubt
    again = [monitor.add(np.zeros(6), COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, number) for number in range(1, 100)]
    assert again[-1].status is CalibrationStatus.CONSISTENT


def test_a_report_tells_a_doubt_until_more_frames_have_settled_it():
    camera = Camera(4, 4, 1.0, 1.0, 2.0, 2.0)
    doubt = CalibrationCheck(CalibrationStatus.NOT_CHECKED, 'turned', np.ones(6), np.ones(6), 100, 0.9)
    degenerate = CalibrationCheck(CalibrationStatus.DEGENERATE, 'a bare plane')
    calibration = None
    for check in (NOT_CHECKED, doubt, NOT_CHECKED, degenerate):
        calibration = Calibration.after(calibration, camera, SE3.identity(), check)
    assert calibration.headline('tf') == 'plumb_bob lens; extrinsic as told by /tf; the data doubt it'
    assert ('check against the data', 'the data doubt it: turned') in calibration.lines('tf')
    consistent = CalibrationCheck(CalibrationStatus.CONSISTENT, '', np.zeros(6), np.ones(6), 100, 0.9)
    calibration = Calibration.after(calibration, camera, SE3.identity(), consistent)
    assert calibration.headline('tf').endswith('the data agree with it')


def test_one_odd_frame_is_no_drift():
    odd = np.array([0.0, 0.004, 0.0, 0.0, 0.0, 0.0])
    assert set(run([np.zeros(6)] * 5 + [odd] + [np.zeros(6)] * 3)) == {CalibrationStatus.CONSISTENT}


def test_an_error_that_stays_is_no_drift_however_often_it_is_seen():
    # An offset of 3 deviations before a wall: chi2 of 9, which 17 % of sound sensors exceed (6 degrees of freedom).
    monitor = CalibrationMonitor(RegistrationConfig(drift_rate_deg_h=0.0, drift_rate_m_h=0.0))
    offset = 3.0 * STD * np.eye(6)[4]
    checks = [
        monitor.add(offset, 1.01 * COVARIANCE, COVARIANCE, 1000, 0.9, PERIOD_NS * number) for number in range(100)
    ]
    assert {check.status for check in checks} == {CalibrationStatus.CONSISTENT}


def test_frames_add_up_but_not_below_what_is_systematic():
    monitor = CalibrationMonitor(RegistrationConfig(drift_rate_deg_h=0.0, drift_rate_m_h=0.0))
    for number in range(100):
        check = monitor.add(np.zeros(6), COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, PERIOD_NS * number)
    systematic, own = 0.25 * STD[0] ** 2, 0.75 * STD[0] ** 2
    assert check.std[0] == pytest.approx(math.sqrt(systematic + own / 100), rel=1e-6)


def test_a_stamp_that_jumps_back_starts_over():
    monitor = CalibrationMonitor(RegistrationConfig())
    drift = np.array([0.0, 0.0, 0.0, 0.05, 0.0, 0.0])
    for number in range(5):
        check = monitor.add(drift, COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, 10**12 + PERIOD_NS * number)
    assert check.status is CalibrationStatus.DRIFTED
    check = monitor.add(np.zeros(6), COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, 0)
    assert check.status is CalibrationStatus.CONSISTENT
    assert check.correction.tolist() == [0.0] * 6
