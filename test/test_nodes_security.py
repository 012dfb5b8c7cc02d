"""docs/integration.md, Security: the nodes in a restricted environment, and what the sources must not contain."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
ROOT = Path(__file__).parents[1]
RUN = """
import sys
from {module} import main
sys.exit(main())
"""


def run_restricted(module: str, tmp_path: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A node with nothing in its environment but what the page names, and where the sources are."""
    environment = {
        'PATH': os.environ['PATH'],
        'HOME': str(tmp_path),
        'PYTHONPATH': str(ROOT),
        'ROS_DOMAIN_ID': os.environ['ROS_DOMAIN_ID'],
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, '-c', RUN.format(module=f'cmml_ros.nodes.{module}'), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        umask=0o077,
    )


def await_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    said = ''
    while text not in said:
        line = process.stderr.readline()
        assert line, f'ended early: {said}'
        said += line


@pytest.mark.parametrize('node', ['inspection_node', 'recorder_node'])
def test_a_node_runs_in_a_restricted_environment(node: str, tmp_path: Path) -> None:
    process = run_restricted(node, tmp_path, '--ros-args', '-p', 'autostart:=false')
    await_line(process, 'waits for a lifecycle manager')
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ('node', 'line'), [('inspection_node', 'listens to /image'), ('recorder_node', 'recording to')]
)
def test_a_node_works_without_a_home_it_can_write(node: str, line: str, tmp_path: Path) -> None:
    """Only the folders that it is told of are written, and nobody else may read them."""
    arguments = ('--ros-args', '-p', f'bag_path:={tmp_path / "bag"}') if node == 'recorder_node' else ()
    process = run_restricted(node, tmp_path, *arguments, HOME='/dev/null', ROS_LOG_DIR=str(tmp_path / 'log'))
    await_line(process, line)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == ({'bag', 'log'} if node == 'recorder_node' else {'log'})
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob('*'))


@pytest.mark.parametrize('node', ['inspection_node', 'recorder_node'])
def test_with_enforced_security_and_no_keystore_a_node_refuses_to_start(node: str, tmp_path: Path) -> None:
    process = run_restricted(
        node,
        tmp_path,
        ROS_SECURITY_ENABLE='true',
        ROS_SECURITY_STRATEGY='Enforce',
        ROS_SECURITY_KEYSTORE=str(tmp_path / 'keystore'),
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'ROS does not start' in said
    assert 'SECURITY ERROR' in said
    assert 'Traceback' not in said


@pytest.mark.parametrize('path', sorted((ROOT / 'cmml_ros').rglob('*.py')), ids=lambda path: path.name)
def test_nothing_that_is_read_can_be_run(path: Path) -> None:
    forbidden = {'pickle', 'cPickle', 'dill', 'shelve', 'marshal'}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not forbidden & {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or '').split('.')[0] not in forbidden
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {'eval', 'exec', 'compile', 'os.system', 'os.popen', '__import__', 'yaml.load'}, name
            assert not any(keyword.arg == 'shell' for keyword in node.keywords)
            if name == 'torch.load':
                assert 'weights_only=True' in ast.unparse(node)
            if name in {'np.load', 'numpy.load'}:
                assert 'allow_pickle=True' not in ast.unparse(node)
