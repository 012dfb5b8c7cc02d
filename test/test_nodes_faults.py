"""Every fault of the design, provoked over DDS between processes: see benchmarks/faults.py."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')
from faults import FAULTS, Outcome, provoke

pytestmark = pytest.mark.slow
SECONDS = 4.0


def check_malformed_messages(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.facts['bad'] > 40
    # Pictures may be passed over before they are looked at; all else is looked at when it comes.
    assert outcome.facts['refused'] >= 0.5 * outcome.facts['bad']
    for reason in ('unknown encoding "sepia8"', 'no field "x" among', 'K is empty', 'needs two frames', 'quaternion'):
        assert reason in outcome.facts['said'], reason


def check_publisher_restarts(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.recovered_s < 10.0  # about a second on a quiet machine


def check_transforms_late(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.facts['observations'] == outcome.sent - outcome.behind


def check_transforms_missing(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.facts['flagged'] > 0
    assert outcome.facts['level'] == '2'
    assert 'lidar' in outcome.facts['message']
    assert 'no transform from "lidar" to "camera"' in outcome.facts['said']


def check_transforms_wrong(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.facts['refused'] == 2 * outcome.sent
    assert 'would close the loop' in outcome.facts['said']


def check_clock_jumps(outcome: Outcome) -> None:
    # What came before the first transforms of the new time.
    assert outcome.lost <= 3
    assert outcome.facts['jumps'] == 1


def check_camera_info_lost(outcome: Outcome) -> None:
    assert outcome.lost == 0


def check_stamps_since_boot(outcome: Outcome) -> None:
    assert 'stamps of "/points" count from the start of the device' in outcome.facts['line']


def check_qos_mismatch(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert '[ERROR]' in outcome.facts['line']
    for text in (outcome.facts['line'], outcome.facts['message']):
        assert 'QoS of /robot is incompatible: Volatile publisher and transient local subscription' in text


def check_overload(outcome: Outcome) -> None:
    facts = outcome.facts
    assert facts['in order']
    assert facts['behind'] > 0.5 * outcome.sent  # nine in ten
    # A frame is inspected, passed over and counted, or still on its way when the counts were taken.
    assert abs(facts['received'] - facts['results'] - facts['behind']) <= 25
    assert facts['age_s'] < 2.0  # half a second on a quiet machine


def check_large_images(outcome: Outcome) -> None:
    assert outcome.sent >= 40
    assert outcome.lost <= 0.1 * outcome.sent  # three in four without the profile


def check_node_killed(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.recovered_s - outcome.facts['starved_s'] < 10.0  # four on a quiet machine


def check_recorder_killed(outcome: Outcome) -> None:
    assert not outcome.facts['complete']
    assert outcome.lost <= 4  # the last second, and a flush that was due


def check_recorder_terminated(outcome: Outcome) -> None:
    assert outcome.facts['complete']
    assert outcome.lost == 0
    assert outcome.facts['ended_s'] < 3.0


def check_disk_full(outcome: Outcome) -> None:
    assert outcome.facts['complete']
    assert outcome.lost == 0


@pytest.mark.parametrize('name', FAULTS)
def test_what_a_fault_costs(name: str) -> None:
    globals()[f'check_{name}'](provoke(name, SECONDS))
