"""Nodes as a process: start, spin, and a clean end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NoReturn

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
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
    """A signal has come while a node loaded."""


class _Signals:
    """What SIGINT and SIGTERM have asked for.

    The handler sets a flag and no more: what it raises in the middle of an import leaves that locked for ever.
    """

    def __init__(self) -> None:
        self.stopping = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.stopping = True


class _Start:
    """The start of a node, in a thread: loading a network takes longer than anybody waits for Ctrl-C."""

    def __init__(self, node: ManagedNode, signals: _Signals) -> None:
        self._node = node
        self._signals = signals
        self._lock = threading.Lock()
        self._loading = True

    def run(self) -> bool:
        """Whether the node runs. Raises _Stopped for a signal while it loads, which goes on until the process ends."""
        started = ThreadPoolExecutor(1, 'start').submit(self._node.start, self._end_loading)
        while not wait([started], _SIGNAL_LATENCY_S).done:
            with self._lock:
                if self._signals.stopping and self._loading:
                    self._loading = False
                    raise _Stopped
        return started.result()

    def _end_loading(self) -> None:
        """From here on the node is started to the end, unless it was given up before."""
        with self._lock:
            if not self._loading:
                raise _Stopped
            self._loading = False


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
            node = make_node()
            nodes.append(node)
            if isinstance(node, ManagedNode) and not _Start(node, signals).run():
                code = 1
                signals.stopping = True
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
    except (CmmlError, ParameterException, NameValidationException) as error:
        get_logger('cmml_ros').fatal(' '.join(str(error).split()))
        code = 1
    finally:
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
