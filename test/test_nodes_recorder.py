"""The recorder as a process beside a robot and a live inspection."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
from robot import (
    ERROR,
    HEIGHT,
    OK,
    START_NS,
    TIMEOUT_S,
    WIDTH,
    NodeProcess,
    Robot,
    StartNode,
    make_info,
    make_picture,
    stamp_ns,
)

from cmml_ros.bag.reader import BagReader
from cmml_ros.errors import BagError
from cmml_ros.version import read_version

IMAGE, POINTS, DEFECTS = '/image', '/points', '/inspection_node/defects'
RESULTS = (DEFECTS, '/inspection_node/markers', '/inspection_node/map', '/inspection_node/calibration')
TOPICS = (IMAGE, POINTS, '/camera_info', '/tf', '/tf_static', *RESULTS)


def recorded(path: Path) -> dict[str, list[Any]]:
    """Messages by topic, as far as the bag can be read."""
    messages: dict[str, list[Any]] = {}
    with BagReader(path) as reader:
        try:
            for topic, message, _ in reader.messages(list(reader.topics())):
                messages.setdefault(topic, []).append(message)
        except BagError:
            assert reader.warnings  # an interrupted bag says so
    return messages


def start_recorder(
    robot: Robot, start_node: StartNode, path: Path, *arguments: str, topics: Sequence[str] = TOPICS
) -> NodeProcess:
    """A recorder that robot and inspection reach."""
    before = Counter(robot.matched)
    recorder = start_node('recorder_node', '-p', f'bag_path:={path}', *arguments)
    await_connection(robot, recorder, before, topics)
    return recorder


def await_connection(robot: Robot, recorder: NodeProcess, before: Counter[str], topics: Sequence[str] = TOPICS) -> None:
    """The recorder says so, and the robot's publishers have met more readers than `before`."""
    for topic in topics:
        recorder.await_line(f'records {topic},')
    for publisher in (robot.image, robot.points, robot.info, robot.tf, robot.tf_static):
        name = publisher.topic_name
        if name in topics:
            robot.await_true(lambda name=name: robot.matched[name] > before[name], f'recorder of {name}')


def written(robot: Robot, topic: str) -> int:
    """Messages of one topic that the recorder has written, by its latest diagnostics."""
    return int(robot.values('recording').get(f'written {topic}', 0))


def await_recorded(robot: Robot, topic: str, count: int) -> None:
    robot.await_true(lambda: written(robot, topic) >= count, f'{count} of {topic} in the bag')


def await_files(robot: Robot, count: int) -> None:
    robot.await_true(lambda: int(robot.values('recording').get('files', 0)) >= count, f'file {count} of the bag')


def await_carried(robot: Robot) -> None:
    """Best-effort messages of the robot reach the recorder.

    For a second or two after a kill the transport on the robot's side may go on to use the shared memory of the process
    that is dead.
    """

    def carried() -> bool:
        robot.info.publish(make_info(START_NS))
        return written(robot, '/camera_info') > 0

    robot.await_true(carried, 'camera_info in the bag')


def send_views(robot: Robot, count: int, first: int = 0, hole: bool = True) -> None:
    for index in range(first, first + count):
        at_ns = START_NS + index * 5 * 10**8
        robot.send(at_ns, make_picture(hole), map_x_m=0.0)
        robot.await_result(at_ns)


def test_inputs_and_results_are_recorded_with_their_sidecar(
    robot: Robot, start_node: StartNode, tmp_path: Path
) -> None:
    recorder = start_recorder(robot, start_node, tmp_path / 'bag', '-p', 'max_file_s:=1.0')
    # Diagnostics of two nodes at 1 Hz have been recorded for longer than a file lasts when the mounting of the sensors
    # becomes known.
    await_recorded(robot, '/diagnostics', 6)
    assert robot.values('recording')['files'] == '1'
    robot.mount()
    send_views(robot, 3)
    await_files(robot, 2)
    send_views(robot, 2, first=3)
    robot.await_map([5])
    await_files(robot, 3)
    for topic, count in ((IMAGE, 5), (POINTS, 5), ('/camera_info', 5), (DEFECTS, 5)):
        await_recorded(robot, topic, count)
    await_recorded(robot, '/inspection_node/map', len(robot.received['map']))
    recording = robot.values('recording')
    assert recording['level'] == OK
    assert {'written_mb_per_s', 'waiting_mb', 'free_disk_mb', 'lost', 'bag', 'mode'} <= set(recording)
    assert recorder.stop() < 3.0
    assert recorder.process.returncode == 0
    assert 'lost: nothing' in recorder.said

    bag = recorded(tmp_path / 'bag')
    assert [stamp_ns(message) for message in bag[IMAGE]] == [START_NS + index * 5 * 10**8 for index in range(5)]
    assert len(bag[POINTS]) == len(bag['/camera_info']) == len(bag[DEFECTS]) == 5
    assert bag['/inspection_node/markers']
    assert bag['/inspection_node/map'][-1].defects[0].observation_count == 5
    # Every file can be used alone: it begins with the mounting of the sensors.
    for file in (tmp_path / 'bag').glob('*.mcap'):
        assert recorded(file)['/tf_static'][0].transforms[0].child_frame_id == 'lidar'
    metadata = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    reliability = {
        topic['topic_metadata']['name']: yaml.safe_load(topic['topic_metadata']['offered_qos_profiles'])[0][
            'reliability'
        ]
        for topic in metadata['topics_with_message_count']
    }
    assert (reliability[IMAGE], reliability['/tf'], reliability[DEFECTS]) == (2, 1, 1)  # as each was offered

    sidecar = yaml.safe_load((tmp_path / 'bag' / 'recording.yaml').read_text())
    assert sidecar['package_version'] == read_version()
    assert sidecar['model_id'] == 'threshold'
    assert sidecar['inspection']['sync.tolerance_s'] == 0.05
    assert sidecar['recorder']['max_file_s'] == 1.0
    assert sidecar['cameras']['/camera_info']['k'][0] == 1000.0
    assert sidecar['static_transforms']['camera -> lidar']['translation_m'] == [0.0, 0.0, 0.0]
    assert sidecar['recorded']['lost'] == {}


def test_results_alone(robot: Robot, start_node: StartNode, tmp_path: Path) -> None:
    robot.mount()
    topics = ('/camera_info', '/tf', '/tf_static', *RESULTS)
    recorder = start_recorder(robot, start_node, tmp_path / 'bag', '-p', 'mode:=results', topics=topics)
    send_views(robot, 2)
    await_recorded(robot, DEFECTS, 2)
    recorder.stop()
    bag = recorded(tmp_path / 'bag')
    assert len(bag[DEFECTS]) == 2
    assert IMAGE not in bag
    assert POINTS not in bag


def test_pictures_around_airholes_alone(robot: Robot, start_node: StartNode, tmp_path: Path) -> None:
    robot.mount()
    arguments = ('-p', 'mode:=events', '-p', 'event_window_s:=0.6')
    recorder = start_recorder(robot, start_node, tmp_path / 'bag', *arguments)
    send_views(robot, 4, hole=False)
    send_views(robot, 1, first=4)
    send_views(robot, 4, first=5, hole=False)
    await_recorded(robot, DEFECTS, 9)
    recorder.stop()
    bag = recorded(tmp_path / 'bag')
    assert len(bag[DEFECTS]) == 9
    around = [START_NS + index * 5 * 10**8 for index in (3, 4, 5)]
    assert [stamp_ns(message) for message in bag[IMAGE]] == around
    assert [stamp_ns(message) for message in bag[POINTS]] == around


@pytest.fixture
def large_view_bag(robot: Robot, start_node: StartNode, tmp_path: Path) -> tuple[Any, Path]:
    robot.mount()
    recorder = start_recorder(robot, start_node, tmp_path / 'bag')
    send_views(robot, 4)
    for topic in (IMAGE, POINTS, DEFECTS):
        await_recorded(robot, topic, 4)
    return recorder, tmp_path / 'bag'


def test_after_a_kill_the_bag_is_readable_and_the_next_recorder_goes_on_beside(
    robot: Robot, start_node: StartNode, large_view_bag: tuple[Any, Path]
) -> None:
    recorder, path = large_view_bag
    time.sleep(2.5)  # flushed once a second
    recorder.stop(signal.SIGKILL)
    bag = recorded(path)
    assert len(bag[IMAGE]) == len(bag[POINTS]) == len(bag[DEFECTS]) == 4
    assert yaml.safe_load((path / 'recording.yaml').read_text())['model_id'] == 'threshold'

    robot.received['health'].clear()
    before, started_s = Counter(robot.matched), time.monotonic()
    again = start_node('recorder_node', '-p', f'bag_path:={path}')
    again.await_line(f'recording to {path}_2')
    restarted_s = time.monotonic() - started_s - again.starved_s()
    await_connection(robot, again, before)
    await_carried(robot)
    send_views(robot, 2, first=4)
    for topic in (IMAGE, POINTS, DEFECTS):
        await_recorded(robot, topic, 2)
    again.stop()
    counts = Counter({topic: len(messages) for topic, messages in recorded(Path(f'{path}_2')).items()})
    assert counts[IMAGE] == counts[POINTS] == counts[DEFECTS] == 2
    assert restarted_s < 5.0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_complete_bag(large_view_bag: tuple[Any, Path], number: signal.Signals) -> None:
    recorder, path = large_view_bag
    assert recorder.stop(number) < 3.0
    assert (path / 'metadata.yaml').is_file()
    with BagReader(path) as reader:
        assert reader.warnings == []
        assert reader.count([IMAGE]) == 4


def test_a_full_disk_stops_the_recording_and_nothing_else(robot: Robot, start_node: StartNode, tmp_path: Path) -> None:
    robot.mount()
    # The reserve begins 20 MB from now, which a second of pictures takes, and others on this machine may take sooner.
    reserve_mb = int(shutil.disk_usage(tmp_path).free / 1e6) - 20
    recorder = start_recorder(robot, start_node, tmp_path / 'bag', '-p', f'reserve_mb:={reserve_mb}')
    noise = np.random.default_rng(0).integers(120, 220, (HEIGHT, WIDTH, 3), np.uint8)  # no airhole in it
    end_s = time.monotonic() + 2 * TIMEOUT_S
    index = 0
    while 'recording has stopped' not in recorder.said:
        assert time.monotonic() < end_s
        robot.send(START_NS + index * 5 * 10**7, noise, map_x_m=0.0)
        index += 1
        time.sleep(0.05)
    robot.await_true(lambda: robot.values('recording').get('level') == ERROR, 'ERROR in diagnostics')
    assert 'MB are kept in reserve' in robot.values('recording')['message']
    # The bag is complete although the recorder still runs, and the inspection goes on.
    with BagReader(tmp_path / 'bag') as reader:
        assert reader.warnings == []
    later_ns = START_NS + (index + 100) * 10**8
    robot.send(later_ns, map_x_m=0.0)
    assert len(robot.await_result(later_ns).defects) == 1
    recorder.stop()
    assert recorder.process.returncode == 0
