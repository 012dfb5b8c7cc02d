"""The network: what it is, how it runs, and what is made of what it says."""

import sys

# Each time OpenVINO is imported it would tell a server, from a process that it forks in a thread of this one. Without
# this package it does not.
sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
