"""What every test runs under."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:  # it needs ROS
    from robot import Robot, StartNode


def pytest_configure() -> None:
    """Keep ROS to this run: a domain of its own, not heard outside this machine."""
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    # The cache of these sources, shared by the processes of this run alone.
    os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='cmml_ros_test_cache_')
    atexit.register(shutil.rmtree, os.environ['XDG_CACHE_HOME'], ignore_errors=True)
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        os.environ[name] = str(Path(__file__).parents[1] / 'config' / 'fastdds.xml')  # as the launch files do
    # The time of one example says more about the machine than about the code; a failure must come back in the next run.
    hypothesis.settings.register_profile('cmml_ros', deadline=None, derandomize=True)
    hypothesis.settings.load_profile('cmml_ros')


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Robot]:
    """Drivers connected over DDS to an active inspection_node in this process."""
    from robot import run_robot

    yield from run_robot(monkeypatch)


@pytest.fixture
def start_node() -> Iterator[StartNode]:
    """Starts nodes as processes; whatever still runs at the end is ended."""
    from robot import run_node_processes

    yield from run_node_processes()
