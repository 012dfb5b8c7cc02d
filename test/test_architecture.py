"""The walls of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'cmml_ros'
MODULES = sorted(PACKAGE.rglob('*.py'))

# From the ground up. A room imports from floors below its own, never from its own floor or above.
FLOORS = (
    {'errors', 'version'},
    {'config', 'geometry', 'bag'},
    {'frame', 'calibration', 'model', 'measurement', 'simulation'},
    {'stream', 'extrinsic_check', 'mapping'},
    {'inspector'},
    {'training', 'report', 'evaluation'},
    {'nodes', 'splits'},
    {'analyze'},
    {'cli'},
)
FLOOR_OF_ROOM = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def find_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            assert node.module is not None
            # `from cmml_ros import analyze` imports a room by its name.
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def each_module(*excluded_rooms: str) -> pytest.MarkDecorator:
    paths = [path for path in MODULES if room_of(path) not in excluded_rooms and path != PACKAGE / '__init__.py']
    return pytest.mark.parametrize('path', paths, ids=lambda path: str(path.relative_to(PACKAGE)))


@each_module()
def test_imports_only_from_floors_below(path: Path) -> None:
    room = room_of(path)
    for name in find_imports(ast.parse(path.read_text())):
        package, _, inner = name.partition('.')
        other = inner.split('.')[0]
        if package == 'cmml_ros' and other not in {room, 'msg', 'srv'}:
            assert FLOOR_OF_ROOM[other] < FLOOR_OF_ROOM[room], f'{room} imports {name}'


@each_module()
def test_compiled_functions_call_none_of_other_files(path: Path) -> None:
    """numba would go on running what it compiled before such a one was edited; `select` is named in compiled.py."""
    tree = ast.parse(path.read_text())
    compiled = {
        function.name
        for other in MODULES
        for function in ast.parse(other.read_text()).body
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == 'compiled' for mark in function.decorator_list)
    }
    imported = {name.rpartition('.')[2] for name in find_imports(tree) if name.startswith('cmml_ros.')} & compiled
    calls = {
        call.func.id
        for function in tree.body
        if isinstance(function, ast.FunctionDef) and function.name in compiled
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    assert calls & imported <= {'select'}


@each_module('nodes')
def test_ros_stays_in_nodes(path: Path) -> None:
    for name in find_imports(ast.parse(path.read_text())):
        parts = name.split('.')
        assert not parts[0].startswith(('rclpy', 'ament_', 'launch', 'tf2_')), name
        assert not parts[0].endswith(('_msgs', '_srvs', '_interfaces')), name
        assert parts[0] != 'cmml_ros' or parts[1] not in {'msg', 'srv'}, name


@each_module('model', 'training')
def test_torch_stays_in_model_and_training(path: Path) -> None:
    assert not [name for name in find_imports(ast.parse(path.read_text())) if name.split('.')[0] == 'torch']


def test_command_line_starts_without_heavy_libraries() -> None:
    code = 'import sys, cmml_ros.cli; print(*sorted(sys.modules))'
    modules = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        'torch',
        'open3d',
        'mitsuba',
        'cv2',
        'numba',
        'scipy',
        'rclpy',
        'onnx',
        'onnxruntime',
        'openvino',
        'matplotlib',
    }
    assert not heavy & set(modules)
