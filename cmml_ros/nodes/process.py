"""A node as a process: start, spin, and a clean end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from cmml_ros.errors import CmmlError

_SIGNAL_LATENCY_S = 0.1
# Python's own 5 ms would be what each callback waits for a worker thread that computes.
_SWITCH_INTERVAL_S = 0.0005


def run_node(make_node: Callable[[], Node]) -> int:
    """Exit code: 0 after Ctrl-C, SIGTERM or the node's own shutdown; 1 when it could not start, with the reason logged.

    rclpy's own signal handlers would shut the context down at once; here the node can still publish, log and close
    its files in `destroy_node`.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = make_node()
        # What the libraries hold by now stays to the end: the interpreter need not look through it again, which took
        # it 0.7 s of processor time on its way out.
        gc.freeze()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=_SIGNAL_LATENCY_S)
    except ExternalShutdownException:
        pass
    except CmmlError as error:
        get_logger('cmml_ros').fatal(str(error))
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
