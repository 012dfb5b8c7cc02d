"""What robots do to the live nodes, provoked over DDS between processes, and what comes of it.

    python benchmarks/faults.py [--only NAME] [--seconds 30]

Each fault has a node of its own, with a threshold in place of the network so that every result is known; the one that
is killed and started again has its network, whose load is most of the time. Prints one row for each: the fault, what
happened, what was lost, and how long it took to go on. `test/test_nodes_faults.py` runs the same faults, shorter, and
asserts what they print.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from robot import (
    NodeProcess,
    Robot,
    end_nodes,
    make_cloud,
    make_edge,
    make_info,
    make_picture,
    spin,
    stamp_ns,
)
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from cmml_ros.bag.reader import BagReader
from cmml_ros.errors import BagError
from cmml_ros.nodes.messages import make_header, make_image

RATE_HZ = 2.0
WAIT_S = 60.0
SECOND = 10**9
MEASURED, NO_TRANSFORM = 0, 4


@dataclass
class Outcome:
    """One row of the table.

    lost: good frames without a result that the pipeline did not pass over for newer ones (behind). recovered_s: until
    the next result; NaN: no gap.
    """

    fault: str
    happened: str = ''
    sent: int = 0
    lost: int = 0
    behind: int = 0
    recovered_s: float = float('nan')
    facts: dict[str, Any] = field(default_factory=dict)


class Bench:
    """A robot in this process and an inspection in another."""

    def __init__(
        self,
        *arguments: str,
        known_segmenter: bool = True,
        segmenter_duration_s: float = 0.0,
        inspect: bool = True,
    ) -> None:
        self._segmenter = {'known_segmenter': known_segmenter, 'segmenter_duration_s': segmenter_duration_s}
        self.context = Context()
        rclpy.init(context=self.context)
        self.robot = Robot(self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.robot)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=spin, args=(self._executor, self._stop))
        self._thread.start()
        self.nodes: list[NodeProcess] = []
        if inspect:
            self.inspection = self.start_inspection(*arguments)

    def start_inspection(self, *arguments: str) -> NodeProcess:
        """A node that is active and connected."""
        node = self.launch_inspection(*arguments)
        node.await_line('listens to')
        self.await_connection()
        return node

    def launch_inspection(self, *arguments: str) -> NodeProcess:
        """A node that begins to start."""
        self.nodes.append(NodeProcess('inspection_node', *arguments, **self._segmenter))
        return self.nodes[-1]

    def await_connection(self, readers: int = 1) -> None:
        """The robot has its readers, and the inspection knows the robot's publishers."""
        robot = self.robot
        for publisher in (robot.image, robot.info, robot.points, robot.tf, robot.tf_static):
            reached = partial(lambda each: each.get_subscription_count() >= readers, publisher)
            self.await_true(reached, f'reader of {publisher.topic_name}')
        robot.received['health'].clear()
        for name in ('image', 'camera_info', 'points', '/tf', '/tf_static'):
            connected = partial(lambda part: int(self.values(part).get('publishers', 0)) > 0, name)
            self.await_true(connected, f'connection to {name}')

    def start(self, name: str, *arguments: str) -> NodeProcess:
        self.nodes.append(NodeProcess(name, *arguments))
        return self.nodes[-1]

    def close(self) -> None:
        end_nodes(self.nodes)
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self.robot.destroy_node()
        rclpy.shutdown(context=self.context)

    @property
    def results(self) -> dict[int, Any]:
        """DefectArray by the stamp of its image."""
        return {stamp_ns(message): message for message in list(self.robot.received['defects'])}

    def values(self, part: str) -> dict[str, str]:
        """Key-values of the latest diagnostics of one part."""
        return self.robot.values(part)

    @staticmethod
    def await_true(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> float:
        """Seconds until it held."""
        started_s = time.monotonic()
        while not condition():
            if time.monotonic() - started_s > timeout_s:
                raise TimeoutError(f'no {what} within {timeout_s:.0f} s')
            time.sleep(0.01)
        return time.monotonic() - started_s

    def await_diagnostics(self) -> None:
        """All that was counted before this call is told: diagnostics come once a second."""
        self.robot.received['health'].clear()
        self.await_true(lambda: sum(self._tells_pipeline(each) for each in self._health()) >= 2, 'diagnostics')

    def _health(self) -> list[Any]:
        return list(self.robot.received['health'])

    @staticmethod
    def _tells_pipeline(message: Any) -> bool:
        return any(status.name.endswith(': pipeline') for status in message.status)

    def stream(
        self, seconds: float, offset_s: float = 0.0, send: Callable[[int], None] | None = None, rate_hz: float = RATE_HZ
    ) -> list[int]:
        """Send complete views, stamped now + offset_s, at a steady rate; their stamps."""
        stamps: list[int] = []
        started_s = time.monotonic()
        for index in range(max(round(seconds * rate_hz), 1)):
            time.sleep(max(started_s + index / rate_hz - time.monotonic(), 0.0))
            stamps.append(time.time_ns() + round(offset_s * 1e9))
            (send or self.send_view)(stamps[-1])
        time.sleep(max(started_s + len(stamps) / rate_hz - time.monotonic(), 0.0))
        return stamps

    def send_view(self, at_ns: int) -> None:
        self.robot.send(at_ns, map_x_m=0.0)

    def finish(self, outcome: Outcome, stamps: list[int], patience_s: float = 15.0) -> Outcome:
        """Count what has no result after all that is under way has arrived."""
        with contextlib.suppress(TimeoutError):
            self.await_true(lambda: set(stamps) <= self.results.keys(), 'all results', patience_s)
        missing = len(set(stamps) - self.results.keys())
        self.await_diagnostics()
        outcome.sent = len(stamps)
        outcome.behind = min(int(self.values('pipeline').get('pipeline behind', 0)), missing)
        outcome.lost = missing - outcome.behind
        outcome.facts['counts'] = self.values('pipeline')
        outcome.facts['said'] = self.inspection.said
        return outcome


def malformed_messages(bench: Bench, seconds: float) -> Outcome:
    """Broken messages of every kind at 20 Hz among good ones at 2 Hz."""
    robot = bench.robot
    robot.mount()
    stop = threading.Event()
    kinds = list(make_malformed())  # here: beside the first good view it would hold that up for longer than images may
    bad = 0

    def disturb() -> None:
        nonlocal bad
        while not stop.wait(0.05):
            publisher, message = kinds[bad % len(kinds)]
            if hasattr(message, 'header'):
                # Between the good ones: as late as they are, but never of the same stamp.
                message.header.stamp = make_header(time.time_ns(), '').stamp
            getattr(robot, publisher).publish(message)
            bad += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    stamps = bench.stream(seconds)
    stop.set()
    thread.join()
    outcome = bench.finish(Outcome('malformed messages at 20 Hz'), stamps)
    refused = sum(int(v) for k, v in bench.values('pipeline').items() if k.endswith(('refused', 'bad message')))
    outcome.happened = f'{bad} sent, {len(kinds)} kinds; each named in the log and counted'
    outcome.facts |= {'bad': bad, 'refused': refused}
    return outcome


def make_malformed() -> Iterator[tuple[str, Any]]:
    """Publisher's name and a broken message, of every kind there is."""
    at_ns = time.time_ns()

    def changed(message: Any, **fields: Any) -> Any:
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    def image(**fields: Any) -> Any:
        return changed(make_image(make_picture(), make_header(at_ns, 'camera')), **fields)

    yield 'image', image(encoding='sepia8')
    yield 'image', image(data=image().data[:-1000])
    yield 'image', image(step=1)
    yield 'image', image(width=0)
    yield 'image', image(height=100000)
    yield 'image', changed(image(), width=160, height=480, step=480)
    cloud = make_cloud(at_ns)
    yield 'points', changed(make_cloud(at_ns), fields=cloud.fields[1:])
    yield 'points', changed(make_cloud(at_ns), data=cloud.data[:100])
    yield 'points', changed(make_cloud(at_ns), point_step=4)
    yield 'points', changed(make_cloud(at_ns), width=10**6)
    yield 'points', changed(make_cloud(at_ns), fields=[changed(each, datatype=77) for each in make_cloud(0).fields])
    yield 'info', changed(make_info(at_ns), k=[0.0] * 9)
    yield 'info', changed(make_info(at_ns), distortion_model='magic')
    yield 'info', changed(make_info(at_ns), k=[float('nan')] * 9)
    yield 'info', changed(make_info(at_ns), d=[0.1] * 3)
    for edge in (
        make_edge(at_ns, '', 'camera'),
        make_edge(at_ns, 'camera', 'camera'),
        make_edge(at_ns, 'camera', 'map'),
        make_edge(at_ns, 'odd', 'even', float('inf')),
        TFMessage(transforms=[TransformStamped(header=make_header(at_ns, 'odd'), child_frame_id='even')]),
    ):
        if edge.transforms[0].header.frame_id == 'odd':
            edge.transforms[0].transform.rotation.w = 0.0
        yield 'tf', edge


def publisher_restarts(bench: Bench, seconds: float) -> Outcome:
    """The camera driver dies and comes back after two seconds."""
    robot = bench.robot
    robot.mount()
    stamps = bench.stream(seconds / 2)
    bench.finish(Outcome(''), stamps)
    for publisher in (robot.image, robot.info):
        robot.destroy_publisher(publisher)
    time.sleep(2.0)
    started_s = time.monotonic()
    robot.image = robot.make_publisher(Image, 'image', qos_profile_sensor_data)
    robot.info = robot.make_publisher(type(make_info(0)), 'camera_info', qos_profile_sensor_data)
    count = len(bench.results)
    while len(bench.results) == count:
        bench.stream(0.2)  # lost while the connection comes up
        if time.monotonic() - started_s > WAIT_S:
            raise TimeoutError('no result after the restart')
    recovered_s = time.monotonic() - started_s
    bench.await_connection()
    stamps += bench.stream(seconds / 2)
    outcome = bench.finish(Outcome('camera driver restarts', recovered_s=recovered_s), stamps)
    outcome.happened = 'the new publisher is taken up, the old camera_info holds'
    return outcome


def transforms_late(bench: Bench, seconds: float) -> Outcome:
    """The robot's pose comes 0.3 s after the picture."""
    robot = bench.robot
    robot.mount()
    timers: list[threading.Timer] = []

    def send(at_ns: int) -> None:
        robot.send(at_ns)
        timers.append(threading.Timer(0.3, lambda: robot.tf.publish(make_edge(at_ns, 'map', 'camera'))))
        timers[-1].start()

    stamps = bench.stream(seconds, send=send)
    for timer in timers:
        timer.join()
    outcome = bench.finish(Outcome('transforms late by 0.3 s'), stamps)

    def observations() -> int:
        """On the latest map, which follows the results once a second."""
        maps = robot.received['map']
        return sum(defect.observation_count for defect in maps[-1].defects) if maps else 0

    with contextlib.suppress(TimeoutError):
        bench.await_true(lambda: observations() >= outcome.sent - outcome.behind, 'map of all', 10.0)
    outcome.facts['observations'] = observations()
    outcome.happened = f'frames wait for them: {outcome.facts["observations"]} of {outcome.sent} placed in the map'
    return outcome


def transforms_missing(bench: Bench, seconds: float) -> Outcome:
    """Nobody says how the sensors lie to each other; then somebody does."""
    stamps = bench.stream(seconds)
    outcome = bench.finish(Outcome('extrinsic missing'), stamps[: -round(RATE_HZ)])
    flagged = [message.defects[0].area_status for message in bench.results.values() if message.defects]
    outcome.facts['flagged'] = sum(status == NO_TRANSFORM for status in flagged)
    outcome.facts['level'] = bench.values('transforms').get('level')
    outcome.facts['message'] = bench.values('transforms').get('message', '')
    started_s = time.monotonic()
    bench.robot.mount()
    while not any(message.defects and message.defects[0].area_status == MEASURED for message in bench.results.values()):
        bench.stream(0.2)
        if time.monotonic() - started_s > WAIT_S:
            raise TimeoutError('not measured after the transform came')
    outcome.recovered_s = time.monotonic() - started_s
    outcome.happened = f'{outcome.facts["flagged"]} of {len(flagged)} results in 2D, flagged NO_TRANSFORM, edge named'
    return outcome


def transforms_wrong(bench: Bench, seconds: float) -> Outcome:
    """A second publisher says another parent, a loop, and numbers that are none."""
    robot = bench.robot
    robot.mount()

    def send(at_ns: int) -> None:
        for edge in (make_edge(at_ns, 'camera', 'map'), make_edge(at_ns, 'map', 'camera', float('nan'))):
            robot.tf.publish(edge)
        bench.send_view(at_ns)

    stamps = bench.stream(seconds, send=send)
    outcome = bench.finish(Outcome('wrong transforms among right ones'), stamps)
    outcome.facts['refused'] = int(bench.values('pipeline').get('transform refused', 0))
    outcome.happened = f'{outcome.facts["refused"]} refused, loop and numbers named'
    return outcome


def clock_jumps(bench: Bench, seconds: float) -> Outcome:
    """The clock of all sensors jumps 100 s forward, then back."""
    bench.robot.mount()
    stamps = bench.stream(seconds / 3)
    bench.finish(Outcome(''), stamps)
    forward = bench.stream(seconds / 3, offset_s=100.0)
    bench.finish(Outcome(''), forward)
    started_s = time.monotonic()
    count = len(bench.results)
    back = bench.stream(0.2)
    while len(bench.results) == count:
        back += bench.stream(0.2)
        if time.monotonic() - started_s > WAIT_S:
            raise TimeoutError('no result after the jump back')
    recovered_s = time.monotonic() - started_s
    back += bench.stream(seconds / 3)
    outcome = Outcome('clock jumps 100 s forward and back', recovered_s=recovered_s)
    bench.finish(outcome, stamps + forward + back)
    outcome.facts['jumps'] = int(bench.values('pipeline').get('time jumped back', 0))
    outcome.happened = f'{outcome.facts["jumps"]} jump back seen: queues, transforms and map start anew'
    return outcome


def camera_info_lost(bench: Bench, seconds: float) -> Outcome:
    """No camera_info at first; it comes, and stops again."""
    robot = bench.robot
    robot.mount()

    def without_info(at_ns: int) -> None:
        robot.tf.publish(make_edge(at_ns, 'map', 'camera'))
        robot.points.publish(make_cloud(at_ns))
        robot.image.publish(make_image(make_picture(), make_header(at_ns, 'camera')))

    bench.stream(6.0, send=without_info)
    bench.inspection.await_line('no message on "/camera_info"')
    assert not bench.results
    started_s = time.monotonic()
    bench.stream(0.2)
    bench.await_true(lambda: bench.results, 'result')
    recovered_s = time.monotonic() - started_s
    stamps = bench.stream(seconds / 2) + bench.stream(seconds / 2, send=without_info)
    outcome = bench.finish(Outcome('camera_info missing, then lost', recovered_s=recovered_s), stamps)
    outcome.happened = 'named after 5 s; once known it is kept'
    return outcome


def qos_mismatch(bench: Bench, seconds: float) -> Outcome:
    """A publisher of /tf_static that offers less than is asked for, among good ones."""
    robot = bench.robot
    robot.mount()
    robot.create_publisher(TFMessage, '/tf_static', QoSProfile(depth=1))
    stamps = bench.stream(seconds)
    outcome = bench.finish(Outcome('QoS mismatch'), stamps)
    outcome.facts['line'] = bench.inspection.await_line('incompatible')
    bench.await_true(lambda: bench.values('/tf_static').get('level') == '2', 'ERROR in diagnostics')
    outcome.facts['message'] = bench.values('/tf_static')['message']
    outcome.happened = 'ERROR in log and diagnostics, node and both policies named'
    return outcome


def overload(bench: Bench, seconds: float) -> Outcome:
    """Pictures at 50 Hz for an inspection that makes 5: two at a time, 0.4 s each, on every machine."""
    bench.robot.mount()
    stamps = bench.stream(seconds, rate_hz=50.0)
    time.sleep(2.0)
    results = bench.results
    ages = [float(bench.values('pipeline').get('result_age_s', 'nan'))]
    outcome = Outcome('10x overload', sent=len(stamps), lost=0)
    counts = bench.values('pipeline')
    outcome.facts |= {
        'results': len(results),
        'received': int(counts.get('image received', 0)),
        'behind': int(counts.get('pipeline behind', 0)),
        'age_s': max(ages),
        'in order': list(results) == sorted(results),
    }
    started_s = time.monotonic()
    stamp = bench.stream(0.2)
    bench.await_true(lambda: stamp[0] in bench.results, 'result after the overload')
    outcome.recovered_s = time.monotonic() - started_s
    outcome.happened = (
        f'{outcome.facts["results"]} newest of {outcome.facts["received"]} received inspected, '
        f'{outcome.facts["behind"]} dropped and counted; age {outcome.facts["age_s"]:.2f} s'
    )
    return outcome


def node_killed(bench: Bench, seconds: float) -> Outcome:
    """kill -9 of the inspection, and another one in its place, with the network."""
    bench.robot.mount()
    stamps = bench.stream(seconds)
    outcome = bench.finish(Outcome('kill -9 of the inspection'), stamps)
    bench.inspection.stop(signal.SIGKILL)
    started_s = time.monotonic()
    bench.inspection = bench.launch_inspection()
    count = len(bench.results)
    while len(bench.results) == count:
        bench.stream(0.2)
        if time.monotonic() - started_s > WAIT_S:
            raise TimeoutError('no result after the restart')
    outcome.recovered_s = time.monotonic() - started_s
    outcome.facts['starved_s'] = bench.inspection.starved_s()
    outcome.happened = (
        'a new node loads its network and goes on, the mounting is latched; '
        f'{outcome.facts["starved_s"]:.1f} s of it without a processor'
    )
    return outcome


def stamps_since_boot(bench: Bench, seconds: float) -> Outcome:
    """The range sensor counts from its start, the camera from 1970."""
    robot = bench.robot
    robot.mount()

    def send(at_ns: int) -> None:
        robot.tf.publish(make_edge(at_ns, 'map', 'camera'))
        robot.info.publish(make_info(at_ns))
        robot.points.publish(make_cloud(at_ns % (1000 * SECOND) + SECOND))
        robot.image.publish(make_image(make_picture(), make_header(at_ns, 'camera')))

    bench.stream(max(seconds, 7.0), send=send)
    outcome = Outcome('stamps since boot')
    outcome.facts['line'] = bench.inspection.await_line('count from the start of the device')
    started_s = time.monotonic()
    while not any(message.defects and message.defects[0].area_status == MEASURED for message in bench.results.values()):
        bench.stream(0.2)
        if time.monotonic() - started_s > WAIT_S:
            raise TimeoutError('not measured after the clock was set')
    outcome.recovered_s = time.monotonic() - started_s
    outcome.happened = 'named after 5 s; pairs again once the clock is set'
    return outcome


def large_images(bench: Bench, seconds: float) -> Outcome:
    """Best-effort pictures of 6.9 MB at 10 Hz between processes."""
    robot = bench.robot
    picture = np.full((1200, 1920, 3), 170, np.uint8)
    message = make_image(picture, make_header(time.time_ns(), 'camera'))

    def send(at_ns: int) -> None:
        message.header.stamp = make_header(at_ns, '').stamp
        robot.image.publish(message)

    stamps = bench.stream(max(seconds, 3.0), send=send, rate_hz=10.0)
    with contextlib.suppress(TimeoutError):
        bench.await_true(lambda: int(bench.values('image').get('received', 0)) >= len(stamps), 'all pictures', 5.0)
    received = int(bench.values('image').get('received', 0))
    outcome = Outcome('pictures of 6.9 MB, best effort', sent=len(stamps), lost=len(stamps) - received)
    outcome.happened = f'{received} of {len(stamps)} arrive with config/fastdds.xml'
    return outcome


def recorder_stopped(bench: Bench, seconds: float, number: signal.Signals) -> Outcome:
    """The recorder gets a signal while it records."""
    robot = bench.robot
    robot.mount()
    folder = Path(tempfile.mkdtemp())
    try:
        recorder = bench.start('recorder_node', '-p', f'bag_path:={folder / "bag"}')
        for topic in ('/image', '/camera_info', '/points', '/tf', '/tf_static', '/inspection_node/defects'):
            recorder.await_line(f'records {topic},')
        bench.await_connection(readers=2)
        stamps = bench.stream(seconds)
        bench.finish(Outcome(''), stamps)
        ended_s = recorder.stop(number)
        with BagReader(folder / 'bag') as reader:
            read = set()
            with contextlib.suppress(BagError):  # the file has no end
                for _, message, _ in reader.messages(['/image']):
                    read.add(stamp_ns(message))
            complete = not reader.warnings
        outcome = Outcome(f'{number.name} of the recorder', sent=len(stamps), lost=len(set(stamps) - read))
        outcome.facts |= {'complete': complete, 'ended_s': ended_s}
        state = 'complete' if complete else 'readable up to the last second'
        outcome.happened = f'bag {state}, ended in {ended_s:.1f} s'
        return outcome
    finally:
        shutil.rmtree(folder)


def recorder_killed(bench: Bench, seconds: float) -> Outcome:
    """kill -9 of the recorder."""
    return recorder_stopped(bench, seconds, signal.SIGKILL)


def recorder_terminated(bench: Bench, seconds: float) -> Outcome:
    """SIGTERM of the recorder."""
    return recorder_stopped(bench, seconds, signal.SIGTERM)


def disk_full(bench: Bench, seconds: float) -> Outcome:
    """The disk is full up to the reserve while the recorder records."""
    robot = bench.robot
    robot.mount()
    folder = Path(tempfile.mkdtemp(dir='/dev/shm' if Path('/dev/shm').is_dir() else None))
    try:
        reserve_mb = shutil.disk_usage(folder).free // 10**6 - 10
        recorder = bench.start('recorder_node', '-p', f'bag_path:={folder / "bag"}', '-p', f'reserve_mb:={reserve_mb}')
        recorder.await_line('recording to')
        started_s = time.monotonic()
        while 'recording has stopped' not in recorder.said:
            bench.stream(1.0, send=lambda at_ns: bench.robot.points.publish(make_cloud(at_ns)), rate_hz=20.0)
            if time.monotonic() - started_s > 2 * WAIT_S:
                raise TimeoutError('the reserve was never reached')
        stamps = bench.stream(seconds)
        outcome = bench.finish(Outcome('disk full'), stamps)
        bench.await_true(lambda: bench.values('recording').get('level') == '2', 'ERROR in diagnostics')
        with BagReader(folder / 'bag') as reader:
            outcome.facts['complete'] = not reader.warnings
        outcome.happened = 'recording stops before the reserve, bag complete, ERROR in diagnostics, inspection goes on'
        return outcome
    finally:
        for node in bench.nodes[1:]:
            node.stop()
        shutil.rmtree(folder)


FAULTS: dict[str, Callable[[Bench, float], Outcome]] = {
    function.__name__: function
    for function in (
        malformed_messages,
        publisher_restarts,
        transforms_late,
        transforms_missing,
        transforms_wrong,
        clock_jumps,
        camera_info_lost,
        stamps_since_boot,
        qos_mismatch,
        overload,
        large_images,
        node_killed,
        recorder_killed,
        recorder_terminated,
        disk_full,
    )
}


def provoke(name: str, seconds: float) -> Outcome:
    """One fault on a bench of its own."""
    bench = Bench(
        known_segmenter=name != node_killed.__name__,
        segmenter_duration_s=0.4 if name == overload.__name__ else 0.0,
    )
    try:
        return FAULTS[name](bench, seconds)
    finally:
        bench.close()


def prepare_environment() -> None:
    """A ROS domain of its own on this machine, and the transport of the launch files."""
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        os.environ[name] = str(Path(__file__).parents[1] / 'config' / 'fastdds.xml')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', choices=FAULTS, action='append', help='provoke this one only; may be repeated')
    parser.add_argument('--seconds', type=float, default=30.0, help='how long malformed messages are sent')
    arguments = parser.parse_args()
    prepare_environment()
    print(f'{"fault":36} {"frames":>6} {"behind":>6} {"lost":>4} {"recovered in":>12}  what happened')
    failed = 0
    for name in arguments.only or FAULTS:
        seconds = arguments.seconds if name == 'malformed_messages' else 6.0
        try:
            outcome = provoke(name, seconds)
        except (AssertionError, TimeoutError) as error:
            failed += 1
            print(f'{name:36} {"":>31}  FAILED: {error}', flush=True)
            continue
        recovered = '-' if np.isnan(outcome.recovered_s) else f'{outcome.recovered_s:.1f} s'
        numbers = f'{outcome.sent:6} {outcome.behind:6} {outcome.lost:4} {recovered:>12}'
        print(f'{outcome.fault:36} {numbers}  {outcome.happened}', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
