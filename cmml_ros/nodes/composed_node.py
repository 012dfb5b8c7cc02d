"""Simulator, inspection and recorder in one process: for a demonstration, or where starting three costs too much.

    python -m cmml_ros.nodes.composed_node --ros-args --params-file FILE

Topics, parameters and services are those of the three nodes. What one publishes still goes through ROS to the others.
"""

from __future__ import annotations

from typing import NoReturn

from cmml_ros.nodes.inspection_node import InspectionNode
from cmml_ros.nodes.process import run_node
from cmml_ros.nodes.recorder_node import RecorderNode
from cmml_ros.nodes.simulator_node import SimulatorNode


def main() -> NoReturn:
    """Run all three until they are stopped; the recorder closes its bag first."""
    run_node(RecorderNode, InspectionNode, SimulatorNode)


if __name__ == '__main__':
    main()
