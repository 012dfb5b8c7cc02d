from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmml_ros.model import compiled_cache
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.compiled_cache import find_cache, make_onnx_once
from cmml_ros.model.engine import OpenVinoEngine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'cmml_ros'


def test_a_second_start_makes_nothing_again_and_gives_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, model_id = load_network(find_weights('small'))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    maps = np.zeros((3, 32, 48), np.float32)
    without = OpenVinoEngine(network, 1)(image, maps)
    assert not cache.exists()
    first = OpenVinoEngine(network, 1, model_id)(image, maps)
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(Path(name).suffix for name in kept) == ['.blob', '.onnx']
    monkeypatch.setattr(compiled_cache, 'make_onnx', None)
    second = OpenVinoEngine(network, 1, model_id)(image, maps)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    np.testing.assert_array_equal(first, without)
    np.testing.assert_array_equal(second, without)


def test_damaged_files_are_made_again(cache: Path) -> None:
    network, model_id = load_network(find_weights('small'))
    image, maps = np.full((64, 96, 3), 90, np.uint8), np.zeros((3, 32, 48), np.float32)
    expected = OpenVinoEngine(network, 1, model_id)(image, maps)
    for length in (0, 30, 1000):
        for path in cache.iterdir():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data[:length])
        np.testing.assert_array_equal(OpenVinoEngine(network, 1, model_id)(image, maps), expected)


def test_other_weights_and_other_sources_are_other_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter((b'a', b'b', b'c'))
    monkeypatch.setattr(compiled_cache, 'make_onnx', lambda _: next(made))
    assert make_onnx_once(None, 'small-1', 'float32', find_cache()) == b'a'
    assert make_onnx_once(None, 'small-2', 'float32', find_cache()) == b'b'
    monkeypatch.setattr(compiled_cache.torch, '__version__', 'another')
    assert make_onnx_once(None, 'small-2', 'float32', find_cache()) == b'c'
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize('home', ['/dev/null', '/proc/nothing'])
def test_without_a_folder_that_can_be_written_nothing_is_kept(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', home)
    assert find_cache() is None
    network, model_id = load_network(find_weights('small'))
    assert OpenVinoEngine(network, 1, model_id)(np.zeros((16, 16, 3), np.uint8), np.zeros((3, 8, 8), np.float32)).any()
