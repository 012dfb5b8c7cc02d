from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmml_ros.config import DetectionConfig
from cmml_ros.frame import Frame
from cmml_ros.model import compiled_cache, export
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.compiled_cache import find_cache, make_onnx_once
from cmml_ros.model.engine import OpenVinoEngine
from cmml_ros.model.matcher import OpenVinoMatcher
from cmml_ros.model.runtime import Segmenter
from cmml_ros.simulation.scenario import Scenario


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'cmml_ros'


def test_a_second_start_makes_nothing_again_and_gives_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, model_id = load_network(find_weights('small'))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    maps = np.zeros((3, 32, 48), np.float32)
    without = OpenVinoEngine(lambda: network, 1)(image, maps)
    assert not cache.exists()
    first = OpenVinoEngine(lambda: network, 1, model_id)(image, maps)
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(Path(name).suffix for name in kept) == ['.blob', '.onnx']
    monkeypatch.setattr(export, 'make_onnx', None)
    second = OpenVinoEngine(lambda: network, 1, model_id)(image, maps)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    np.testing.assert_array_equal(first, without)
    np.testing.assert_array_equal(second, without)


def test_what_matches_is_kept_once_for_pictures_of_every_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, model_id = load_network(find_weights('small'))
    pictures = [np.full((height, 96, 3), 90, np.uint8) for height in (64, 80)]
    for image in pictures:
        OpenVinoMatcher(lambda: network, 1, model_id).look(image)
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(Path(name).suffix for name in kept) == ['.blob', '.blob', '.onnx', '.onnx']
    monkeypatch.setattr(export, 'make_encoding_onnx', None)
    monkeypatch.setattr(export, 'make_description_onnx', None)
    again = OpenVinoMatcher(lambda: network, 1, model_id)
    for image in pictures:
        again.look(image)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == kept


def test_damaged_files_are_made_again(cache: Path) -> None:
    network, model_id = load_network(find_weights('small'))
    image, maps = np.full((64, 96, 3), 90, np.uint8), np.zeros((3, 32, 48), np.float32)
    expected = OpenVinoEngine(lambda: network, 1, model_id)(image, maps)
    for length in (0, 30, 1000):
        for path in cache.iterdir():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data[:length])
        np.testing.assert_array_equal(OpenVinoEngine(lambda: network, 1, model_id)(image, maps), expected)


def test_other_weights_and_other_sources_are_other_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter((b'a', b'b', b'c'))
    monkeypatch.setattr(export, 'make_onnx', lambda _: next(made))
    assert make_onnx_once(lambda: None, 'small-1', 'float32', find_cache()) == b'a'
    assert make_onnx_once(lambda: None, 'small-2', 'float32', find_cache()) == b'b'
    monkeypatch.setattr(compiled_cache, 'version', lambda _: 'another')
    assert make_onnx_once(lambda: None, 'small-2', 'float32', find_cache()) == b'c'
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize('home', ['/dev/null', '/proc/nothing'])
def test_without_a_folder_that_can_be_written_nothing_is_kept(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', home)
    assert find_cache() is None
    network, model_id = load_network(find_weights('small'))
    assert OpenVinoEngine(lambda: network, 1, model_id)(
        np.zeros((16, 16, 3), np.uint8), np.zeros((3, 8, 8), np.float32)
    ).any()


# In a process of its own: others have imported torch by now.
START = """
import pickle, sys
from pathlib import Path
from cmml_ros.config import InspectorConfig, RegistrationConfig
from cmml_ros.inspector import Inspector
frame = pickle.loads(Path(sys.argv[1]).read_bytes())
for mode in ('tf', 'refine', 'match'):
    inspector = Inspector(InspectorConfig(registration=RegistrationConfig(mode=mode)))
    inspector.inspect(frame)
    print(inspector.finish().status.name)
print('torch' in sys.modules)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_nothing_is_found_or_matched_through_torch_once_the_network_is_kept(tmp_path: Path) -> None:
    """It takes seconds to import, in which scipy fails in other threads, and hundreds of megabytes."""
    scenario = Scenario(sensor_name='depth_camera', seed=6006)
    seen = scenario.frame(60)
    frame = Frame(
        seen.rendering.image, scenario.camera, seen.stamp_ns, '', seen.cloud, seen.cloud_stamp_ns, scenario.extrinsic
    )
    (tmp_path / 'frame').write_bytes(pickle.dumps(frame))
    assert Segmenter(DetectionConfig()).matcher  # from now on they are kept
    done = subprocess.run([sys.executable, '-c', START, tmp_path / 'frame'], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['CONSISTENT', 'CONSISTENT', 'CONSISTENT', 'False']
