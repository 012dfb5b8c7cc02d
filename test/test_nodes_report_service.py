from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
from cmml_ros.srv import SaveReport
from robot import START_NS, TIMEOUT_S, Robot

from cmml_ros.errors import ConfigError
from cmml_ros.nodes.report_service import choose_folder


@pytest.fixture(autouse=True)
def ros_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('ROS_HOME', str(tmp_path))
    return tmp_path / 'cmml_ros'


def test_a_report_of_the_map_so_far_is_written_below_the_report_folder(ros_home: Path, robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS, map_x_m=0.25)
    robot.await_messages('map', 1)
    answer = robot.save_report.call(SaveReport.Request(directory='pier 7'), TIMEOUT_S)
    assert answer.success, answer.message
    assert (answer.defect_count, answer.report_path) == (1, str(ros_home / 'pier 7' / 'report.html'))
    with (ros_home / 'pier 7' / 'defects.csv').open() as file:
        (row,) = csv.DictReader(file)
    assert float(row['x_m']) == pytest.approx(0.25, abs=5e-4)
    summary = json.loads((ros_home / 'pier 7' / 'summary.json').read_text())
    assert (summary['frames'], summary['airholes'], summary['model_id']) == (1, 1, 'threshold')
    assert '<html' in Path(answer.report_path).read_text()

    # Without a name each report has a folder of its own.
    paths = {robot.save_report.call(SaveReport.Request(), TIMEOUT_S).report_path for _ in range(2)}
    assert len(paths) == 2
    assert {Path(path).parents[1] for path in paths} == {ros_home}

    outside = robot.save_report.call(SaveReport.Request(directory='../elsewhere'), TIMEOUT_S)
    assert not outside.success
    assert 'is not below the report folder' in outside.message
    assert not (ros_home.parent / 'elsewhere').exists()
    too_long = robot.save_report.call(SaveReport.Request(directory='x' * 5000), TIMEOUT_S)
    assert not too_long.success
    assert 'File name too long' in too_long.message


def test_a_report_that_fails_is_answered_too(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError('no such share')

    monkeypatch.setattr('cmml_ros.nodes.report_service.write_results', fail)
    answer = robot.save_report.call(SaveReport.Request(), TIMEOUT_S)
    assert not answer.success
    assert answer.message == 'ZeroDivisionError: no such share'


@pytest.mark.parametrize('directory', ['..', '../x', 'a/../../x', '/etc', '/', 'link', 'link/x', 'zero\0byte'])
def test_no_name_leads_out_of_the_report_folder(tmp_path: Path, directory: str) -> None:
    root = tmp_path / 'reports'
    root.mkdir()
    (tmp_path / 'outside').mkdir()
    (root / 'link').symlink_to(tmp_path / 'outside')
    with pytest.raises(ConfigError, match='is not below the report folder'):
        choose_folder(root, directory)


@pytest.mark.parametrize('directory', ['a', 'a/b', 'a/../b', './a', '$(touch x)', '; rm -rf ~', '%s'])
def test_names_are_names_and_nothing_else(tmp_path: Path, directory: str) -> None:
    folder = choose_folder(tmp_path, directory)
    assert folder.is_relative_to(tmp_path)
    assert folder == (tmp_path / directory).resolve()
