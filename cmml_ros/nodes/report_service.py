"""`~/save_report`: tables and report of the map so far, written beside the inspection, below one folder only."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from rclpy.node import Node
from rclpy.task import Future

from cmml_ros.config import InspectorConfig
from cmml_ros.errors import CmmlError, ConfigError
from cmml_ros.mapping.defect_map import MapSnapshot
from cmml_ros.report.results import write_results
from cmml_ros.report.summary import Summary
from cmml_ros.srv import SaveReport

Snapshot = Callable[[], tuple[MapSnapshot, Summary, InspectorConfig]]


class ReportService:
    """Answers when the report is written; callbacks of the node go on meanwhile.

    root: reports are written below it. snapshot: the map, the facts about the run and the settings,
    from any thread.
    """

    def __init__(self, node: Node, root: Path, snapshot: Snapshot) -> None:
        self._node = node
        self._root = root
        self._snapshot = snapshot
        self._service = node.create_service(SaveReport, '~/save_report', self._on_request)

    def destroy(self) -> None:
        """Withdraw the service."""
        self._node.destroy_service(self._service)

    async def _on_request(self, request: SaveReport.Request, response: SaveReport.Response) -> SaveReport.Response:
        written: Future = Future()
        if self._node.executor is not None:
            written.add_done_callback(lambda _: self._node.executor.wake())

        def write() -> None:
            try:
                self._write(request.directory, response)
            except (CmmlError, OSError) as error:
                reason = str(error) if isinstance(error, CmmlError) else f'{error.filename}: {error.strerror}'
                response.success, response.message = False, reason
            except Exception as error:  # who asked must not wait for ever
                self._node.get_logger().error(f'no report: {traceback.format_exc()}')
                response.success, response.message = False, f'{type(error).__name__}: {error}'
            written.set_result(None)

        threading.Thread(target=write, name='report').start()
        await written
        return response

    def _write(self, directory: str, response: SaveReport.Response) -> None:
        folder = choose_folder(self._root, directory)
        folder.mkdir(parents=True, exist_ok=True)
        snapshot, summary, config = self._snapshot()
        write_results(folder, snapshot, summary, config)
        count = len(snapshot.entries)
        response.success, response.defect_count = True, count
        response.report_path = str(folder / 'report.html')
        response.message = f'{count} airholes written to {folder}'


def default_root() -> Path:
    """Where reports go when `report_dir` is empty: `cmml_ros` in the folder in which ROS keeps its logs."""
    return Path(os.environ.get('ROS_HOME') or Path.home() / '.ros') / 'cmml_ros'


def choose_folder(root: Path, directory: str) -> Path:
    """`directory` below `root`, or a new folder named after the time when it is empty.

    Raises ConfigError for one that leads out of `root`, by its name or by a link on the way.
    """
    if not directory:
        return root.resolve() / f'report_{datetime.now(timezone.utc):%Y%m%d_%H%M%S_%f}'
    try:
        folder = (root / directory).resolve()
    except (ValueError, RuntimeError):  # a zero byte, a loop of links
        folder = Path('/')
    if not folder.is_relative_to(root.resolve()):
        raise ConfigError(
            f'"{directory}" is not below the report folder {root}; give a name below it, or set report_dir'
        )
    return folder
