"""The life cycle of the nodes, as a lifecycle manager sees it, and as a person with Ctrl-C does."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')
import rclpy
from cmml_ros.msg import Defect
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from robot import (
    LATCHED,
    OK,
    START_NS,
    TIMEOUT_S,
    Robot,
    StartNode,
    ThresholdSegmenter,
    know_airholes,
    make_cloud,
    make_edge,
    make_info,
    make_picture,
)
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import Trigger

from cmml_ros.errors import ModelError
from cmml_ros.nodes.inspection_node import InspectionNode
from cmml_ros.nodes.messages import make_header, make_image

ACTIVE, INACTIVE = State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_INACTIVE
UNCONFIGURED, FINALIZED = State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_FINALIZED


class Manager(Node):
    """What a lifecycle manager does."""

    def __init__(self, context: Context, node: str = 'inspection_node') -> None:
        super().__init__('manager', context=context)
        self._change = self.create_client(ChangeState, f'{node}/change_state')
        self._get = self.create_client(GetState, f'{node}/get_state')
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)

    def change(self, transition: int) -> bool:
        before = self.state()
        answer = self._ask(self._change, ChangeState.Request(transition=Transition(id=transition)), 2 * TIMEOUT_S)
        # The first answer to a new client may come before the server knows its reader, and be lost.
        return self.state() != before if answer is None else answer.success

    def state(self) -> int:
        for _ in range(20):
            answer = self._ask(self._get, GetState.Request(), TIMEOUT_S / 10)
            if answer is not None:
                return answer.current_state.id
        raise AssertionError(f'no answer from {self._get.srv_name}')

    def _ask(self, client: Any, request: Any, timeout_s: float) -> Any:
        assert client.wait_for_service(2 * TIMEOUT_S)
        future = client.call_async(request)
        self._executor.spin_until_future_complete(future, timeout_s)
        return future.result() if future.done() else None


@pytest.fixture
def manager() -> Iterator[Callable[..., Manager]]:
    context = Context()
    rclpy.init(context=context)
    managers: list[Manager] = []

    def make(node: str = 'inspection_node') -> Manager:
        managers.append(Manager(context, node))
        return managers[-1]

    yield make
    for each in managers:
        each.destroy_node()
    rclpy.shutdown(context=context)


def test_a_manager_leads_the_node_through_its_states(robot: Robot, manager: Callable[..., Manager]) -> None:
    lifecycle = manager()
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_messages('map', 1)
    assert lifecycle.state() == ACTIVE

    assert lifecycle.change(Transition.TRANSITION_DEACTIVATE)
    assert lifecycle.state() == INACTIVE
    robot.await_true(lambda: not robot.count_subscribers('image'), 'end of the subscription')
    assert robot.count_publishers('inspection_node/defects') == 1

    # What is on the map stays while the node pauses.
    assert lifecycle.change(Transition.TRANSITION_ACTIVATE)
    robot.await_connection()
    robot.send(START_NS + 10**9, map_x_m=0.0)
    robot.await_map([2])

    assert lifecycle.change(Transition.TRANSITION_DEACTIVATE)
    assert lifecycle.change(Transition.TRANSITION_CLEANUP)
    assert lifecycle.state() == UNCONFIGURED
    robot.await_true(lambda: not robot.count_publishers('inspection_node/defects'), 'end of the results')

    assert lifecycle.change(Transition.TRANSITION_CONFIGURE)
    assert lifecycle.change(Transition.TRANSITION_ACTIVATE)
    assert lifecycle.change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert lifecycle.state() == FINALIZED


def test_a_camera_info_that_was_latched_before_is_heard(robot: Robot, manager: Callable[..., Manager]) -> None:
    lifecycle = manager()
    assert lifecycle.change(Transition.TRANSITION_DEACTIVATE)
    robot.destroy_publisher(robot.info)
    robot.info = robot.make_publisher(CameraInfo, 'camera_info', LATCHED)
    robot.info.publish(make_info(START_NS))
    robot.mount()
    assert lifecycle.change(Transition.TRANSITION_ACTIVATE)
    robot.await_connection()
    robot.tf.publish(make_edge(START_NS, 'map', 'camera'))
    robot.points.publish(make_cloud(START_NS))
    robot.image.publish(make_image(make_picture(), make_header(START_NS, 'camera')))
    assert robot.await_result(START_NS).defects[0].area_status == Defect.MEASURED
    robot.await_true(lambda: robot.values('camera_info').get('received') == '1', 'diagnostics')
    assert robot.values('camera_info')['level'] == OK


def test_a_transition_that_the_state_does_not_have_is_refused(
    robot: Robot, manager: Callable[..., Manager], capfd: pytest.CaptureFixture[str]
) -> None:
    lifecycle = manager()
    assert lifecycle.change(Transition.TRANSITION_DEACTIVATE)
    assert lifecycle.change(Transition.TRANSITION_ACTIVATE)
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP):
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = lifecycle._ask(lifecycle._change, request, TIMEOUT_S)
        assert answer is not None
        assert not answer.success
    assert lifecycle.state() == ACTIVE
    assert 'no transition 1 from the state active; there are deactivate (4), shutdown (7)' in capfd.readouterr().err
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_map([1])


def test_without_autostart_the_node_waits_and_a_failure_leaves_it_unconfigured(
    start_node: StartNode, manager: Callable[..., Manager]
) -> None:
    node = start_node('inspection_node', '-p', 'autostart:=false', '-p', 'detection.model:=nothing')
    node.await_line('waits for a lifecycle manager')
    lifecycle = manager()
    assert lifecycle.state() == UNCONFIGURED
    assert not lifecycle.change(Transition.TRANSITION_CONFIGURE)
    assert lifecycle.state() == UNCONFIGURED
    node.await_line('cannot configure: no shipped weights called "nothing"')
    assert node.stop() < 3.0
    assert node.process.returncode == 0


def test_a_warm_up_that_fails_is_cleaned_up_and_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    know_airholes(monkeypatch.setattr)
    segment = ThresholdSegmenter.segment

    def fail(*_: object) -> None:
        raise ModelError('no memory left')

    monkeypatch.setattr(ThresholdSegmenter, 'segment', fail)
    rclpy.init()
    node = InspectionNode()
    try:
        assert not node.start()
        assert node.failure == 'no memory left'
        monkeypatch.setattr(ThresholdSegmenter, 'segment', segment)
        assert node.start()
    finally:
        node.destroy_node()
        rclpy.shutdown()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_that_still_loads_its_network(start_node: StartNode, number: signal.Signals) -> None:
    node = start_node('inspection_node')
    node.await_line('loads the network')
    assert node.stop(number) < 3.0
    assert node.process.returncode == 0
    assert 'Traceback' not in node.said


def test_services_answer_while_a_frame_is_computed(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = threading.Event()
    segment = ThresholdSegmenter.segment

    def segment_slowly(self: ThresholdSegmenter, image: NDArray[np.uint8], *_: object) -> list[Any]:
        """A second of work, partly with the interpreter held, as with a network."""
        busy.set()
        end_s = time.monotonic() + 1.0
        while time.monotonic() < end_s:
            np.linalg.svd(np.ones((60, 60)))
            sum(range(2000))
        busy.clear()
        return segment(self, image)

    monkeypatch.setattr(ThresholdSegmenter, 'segment', segment_slowly)
    robot.mount()
    latencies_s = []
    for index in range(3):
        robot.send(START_NS + index * 10**9, map_x_m=0.0)
        assert busy.wait(TIMEOUT_S)
        while busy.is_set():
            started_s = time.monotonic()
            assert robot.reset.call(Trigger.Request(), TIMEOUT_S).success
            latencies_s.append(time.monotonic() - started_s)
            time.sleep(0.02)
    robot.await_messages('defects', 3)
    assert len(latencies_s) > 20
    assert statistics.median(latencies_s) < 0.1


_SIGNALLED_WHILE_IT_ACTIVATES = """
import os, signal
from cmml_ros.nodes.managed import ManagedNode
from cmml_ros.nodes.process import run_node

class Signalled(ManagedNode):
    def activate(self):
        os.kill(os.getpid(), signal.SIGTERM)
        print('activated')

    def clean_up(self):
        print('cleaned up')

run_node(lambda: Signalled('signalled'))
"""


def test_a_signal_does_not_cut_activation_short() -> None:
    """What is cut where a lock is taken leaves it locked, and the end would wait for it."""
    ended = subprocess.run(
        [sys.executable, '-c', _SIGNALLED_WHILE_IT_ACTIVATES], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.split('\n') == ['activated', 'cleaned up', '']
    assert ended.returncode == 0, ended.stderr
