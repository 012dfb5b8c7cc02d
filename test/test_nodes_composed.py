"""Simulator, inspection and recorder in one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy')
import rclpy
from cmml_ros.msg import DefectArray
from robot import StartNode, stamp_ns

from cmml_ros.bag.reader import BagReader

IMAGE, DEFECTS = '/image', '/inspection_node/defects'
TIMEOUT_S = 120.0  # the network is made ready on the way


@pytest.mark.slow
def test_what_is_simulated_is_inspected_and_recorded_by_one_process(start_node: StartNode, tmp_path: Path) -> None:
    path = tmp_path / 'bag'
    received: list[Any] = []
    context = rclpy.Context()
    context.init()
    watcher = rclpy.create_node('watcher', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(watcher)
    watcher.create_subscription(DefectArray, DEFECTS, received.append, 10)
    node = start_node(
        'composed_node',
        *('-p', f'recorder_node:bag_path:={path}'),
        *('-p', 'simulator_node:frames:=2', '-p', 'simulator_node:rate_hz:=1.0'),
    )
    end_s = time.monotonic() + TIMEOUT_S
    while len(received) < 2:
        executor.spin_once(timeout_sec=0.1)
        assert time.monotonic() < end_s, node.said
    time.sleep(1.0)  # DDS reaches each reader in its own time
    node.stop()
    executor.shutdown()
    watcher.destroy_node()
    context.shutdown()
    assert node.process.returncode == 0, node.said
    with BagReader(path) as reader:
        assert reader.warnings == []
        images = {stamp_ns(message) for _, message, _ in reader.messages([IMAGE])}
        inspected = {stamp_ns(message) for _, message, _ in reader.messages([DEFECTS])}
    assert {stamp_ns(message) for message in received} <= inspected <= images
    assert sum(len(message.defects) for message in received) > 0
