"""What the subscriptions of the recorder do when it stops."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
import rclpy
from cmml_ros.msg import DefectArray

from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.recording import Recording
from cmml_ros.bag.writer import BagWriter
from cmml_ros.nodes.sidecar import Sidecar
from cmml_ros.nodes.taps import Tap, TapSettings

TOPIC, TIMEOUT_S = '/defects', 10.0


def test_what_has_arrived_is_recorded_before_the_recorder_stops(tmp_path: Path) -> None:
    context = rclpy.Context()
    context.init()
    node = rclpy.create_node('recorder', context=context)
    publisher = node.create_publisher(DefectArray, TOPIC, 10)
    recording = Recording(BagWriter(tmp_path / 'bag', max_file_bytes=10**9, max_file_s=0.0), 10**8, 0)
    sidecar = Sidecar(node, '/inspection_node', {})
    tap = Tap(node, [TOPIC], TapSettings('all', TOPIC, 1.0, 10.0, 10**8), recording, sidecar)
    tap.discover()
    end_s = time.monotonic() + TIMEOUT_S
    while publisher.get_subscription_count() == 0:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    for number in range(3):  # nobody spins the node
        publisher.publish(DefectArray(model_id=str(number)))
    time.sleep(0.5)
    tap.close()
    assert recording.stop().messages == 3
    sidecar.close()
    node.destroy_node()
    context.shutdown()
    with BagReader(tmp_path / 'bag') as reader:
        assert [message.model_id for _, message, _ in reader.messages([TOPIC])] == ['0', '1', '2']
