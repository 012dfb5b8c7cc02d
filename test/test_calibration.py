import math

import numpy as np
import pytest

from cmml_ros.calibration import CalibrationMonitor, CalibrationStatus
from cmml_ros.config import RegistrationConfig

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
    assert run([drift] * 4) == [CalibrationStatus.CONSISTENT] * 2 + [CalibrationStatus.DRIFTED] * 2
    monitor = CalibrationMonitor(RegistrationConfig(frames_to_believe=1))
    check = monitor.add(drift, COVARIANCE, 0.25 * COVARIANCE, 1000, 0.9, 0)
    assert 'turned by 1.00 degrees' in check.reason
    assert check.correction[0] == pytest.approx(math.radians(1.0))
    assert check.match_count == 1000


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
