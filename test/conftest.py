"""What every test runs under."""

from __future__ import annotations

import os

import hypothesis


def pytest_configure() -> None:
    """Keep ROS to this run: a domain of its own, not heard outside this machine."""
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    # The time of one example says more about the machine than about the code; a failure must come back in the next run.
    hypothesis.settings.register_profile('cmml_ros', deadline=None, derandomize=True)
    hypothesis.settings.load_profile('cmml_ros')
