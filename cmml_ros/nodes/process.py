"""A node as a process: start, spin, and a clean end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node

from cmml_ros.errors import CmmlError


def run_node(make_node: Callable[[], Node]) -> int:
    """Exit code: 0 after Ctrl-C, SIGTERM or the node's own end; 1 when it could not start, with the reason logged."""
    rclpy.init(args=sys.argv)
    node = None
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except CmmlError as error:
        get_logger('cmml_ros').fatal(str(error))
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
