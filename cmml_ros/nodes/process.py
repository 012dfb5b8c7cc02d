"""Nodes as a process: start, spin, and a clean end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from cmml_ros.errors import CmmlError, ConfigError
from cmml_ros.nodes.managed import ManagedNode

_SIGNAL_LATENCY_S = 0.1
# Python's own 5 ms would be what each callback waits for a worker thread that computes.
_SWITCH_INTERVAL_S = 0.0005


class _Stopped(BaseException):
    """A signal that came while a node loaded."""


class _Signals:
    """What SIGINT and SIGTERM have asked for.

    Plain flags: a handler that takes a lock, or raises where one is being taken, can leave it locked for ever. So it
    raises only where waiting would be long and nothing is open yet.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.loading = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def end_loading(self) -> None:
        """From here on a signal is noted, no more."""
        self.loading = False

    def _on_signal(self, *_: object) -> None:
        self.stopping = True
        if self.loading:
            self.loading = False
            raise _Stopped  # loading a network takes longer than anybody waits for Ctrl-C


def run_node(*make_nodes: Callable[[], Node]) -> NoReturn:
    """Ends the process with 0 after Ctrl-C, SIGTERM or the node's own shutdown, with 1 when it could not start.

    Of several nodes each spins in a thread of its own, and they end in the order in which they are named.

    A callback that fails costs itself and a line in the log, never the node.

    rclpy's own signal handlers would shut the context down at once; here the node can still publish, log and close
    its files in `destroy_node`.
    """
    signals = _Signals()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    nodes: list[Node] = []
    code = 0
    try:
        _init()
        for make_node in make_nodes:
            signals.loading = not signals.stopping
            node = make_node()
            nodes.append(node)
            if isinstance(node, ManagedNode) and not node.start(signals.end_loading):
                code = 1
                signals.stopping = True
            signals.end_loading()
        # What the libraries hold by now stays to the end: no collection need look through it in the middle of a frame.
        gc.freeze()
        spinning = [threading.Thread(target=_spin, args=(node, signals)) for node in nodes[1:]]
        for thread in spinning:
            thread.start()
        _spin(nodes[0], signals)
        for thread in spinning:
            thread.join()
    except (ExternalShutdownException, _Stopped):
        pass
    except CmmlError as error:
        get_logger('cmml_ros').fatal(str(error))
        code = 1
    finally:
        signals.end_loading()
        for node in nodes:
            node.destroy_node()
        rclpy.try_shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing of ours is open any more. The interpreter would take a second to tidy up, and pull the libraries from
    # under a frame in work that outlived its patience.
    os._exit(code)


def _init() -> None:
    """Raises ConfigError where ROS refuses arguments or environment, as with security and no keystore."""
    try:
        rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        raise ConfigError(f'ROS does not start: {error}; check the arguments and the ROS_* variables') from None


def _spin(node: Node, signals: _Signals) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not signals.stopping:
            _spin_once(executor)
    except ExternalShutdownException:
        pass
    finally:
        signals.stopping = True


def _spin_once(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin_once(timeout_sec=_SIGNAL_LATENCY_S)
    except ExternalShutdownException:
        raise
    except Exception:
        get_logger('cmml_ros').error(f'a callback failed: {traceback.format_exc()}', throttle_duration_sec=1.0)
