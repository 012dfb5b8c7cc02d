from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from cmml_ros.cli import main
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.matcher import ArrayLikeness, OpenVinoMatcher
from cmml_ros.model.matching_head import Descriptors
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.torch_engine import TensorLikeness, TorchMatcher


@pytest.fixture(scope='module')
def network() -> MultitaskNetwork:
    return load_network(find_weights('small'))[0]


def make_inputs(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A picture and the maps of points in three quarters of it."""
    rng = np.random.default_rng(height)
    maps = rng.normal(size=(5, height // 2, width // 2)).astype(np.float32)
    maps[2] = maps[4] = 1.0
    maps[:, : height // 4, : width // 4] = 0.0
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8), maps


def make_vectors(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=(48, rows, columns))
    return (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)


def as_arrays(likeness: TensorLikeness | ArrayLikeness) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Descriptors of the picture (M, 48) and of the points (M, 48)."""
    if isinstance(likeness, TensorLikeness):
        return likeness._image.numpy(), likeness._points.numpy()
    return likeness._image.reshape(48, -1).T, likeness._points


def test_one_matcher_serves_pictures_of_every_size_and_describes_them_as_torch_does(network: MultitaskNetwork):
    matcher, reference = OpenVinoMatcher(lambda: network, 1), TorchMatcher(network)
    for height, width in ((128, 192), (96, 64), (128, 192)):
        image, maps = make_inputs(height, width)
        describe, expect = matcher.look(image), reference.look(image)
        for its_maps in (maps, np.zeros_like(maps)):
            for found, expected in zip(as_arrays(describe(its_maps)), as_arrays(expect(its_maps)), strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('reach_cells', [None, 1, 7])
def test_superpoints_are_matched_as_by_torch(network: MultitaskNetwork, reach_cells: int | None):
    rng = np.random.default_rng(1)
    image, noise = make_vectors(rng, 40, 56), make_vectors(rng, 40, 56)
    points = np.roll(image, (2, -3), axis=(1, 2)) + 0.5 * noise
    points /= np.linalg.norm(points, axis=0)
    cells = np.sort(rng.choice(40 * 56, 200, replace=False))
    sharpness = network.matching_head.sharpness.exp().detach().numpy()
    match, probability = ArrayLikeness(image, points, sharpness).match_superpoints(cells, reach_cells)
    tensors = Descriptors(torch.from_numpy(image)[None], torch.from_numpy(points)[None])
    expected = TensorLikeness(tensors, network.matching_head).match_superpoints(cells, reach_cells)
    np.testing.assert_allclose(probability, expected[1], atol=1e-5)
    np.testing.assert_array_equal(match, expected[0])
    if reach_cells != 1:  # what was rolled is found where it came from
        inside = (cells // 56 >= 2) & (cells % 56 < 53)
        assert np.mean(match[inside] == cells[inside] - 2 * 56 + 3) > 0.95


def test_points_are_matched_as_by_torch(network: MultitaskNetwork):
    rng = np.random.default_rng(2)
    image, points = make_vectors(rng, 20, 30), make_vectors(rng, 20, 30)
    cells = rng.choice(600, 500, replace=False)
    windows = np.where(rng.random((500, 81)) < 0.2, -1, rng.integers(0, 600, (500, 81)))
    sharpness = network.matching_head.sharpness.exp().detach().numpy()
    probability = ArrayLikeness(image, points, sharpness).match_points(cells, windows)
    tensors = Descriptors(torch.from_numpy(image)[None], torch.from_numpy(points)[None])
    expected = TensorLikeness(tensors, network.matching_head).match_points(cells, windows)
    np.testing.assert_allclose(probability, expected, atol=1e-5)
    assert not probability[windows < 0].any()


def test_both_sides_have_to_agree():
    """Two cells that look the same share the probability of the point, and two points alike that of a cell."""
    east, north = np.eye(2, dtype=np.float32)
    image = np.stack([east, east, north, -east])[:, None].transpose(2, 1, 0)  # (2, 1, 4)
    points = np.stack([east, north, -north, -north])[:, None].transpose(2, 1, 0)
    likeness = ArrayLikeness(image, points, np.array([50.0, 50.0], np.float32))
    match, probability = likeness.match_superpoints(np.array([0, 1]), None)
    assert match.tolist() == [0, 2]
    assert probability == pytest.approx([0.5, 1.0], abs=1e-6)
    _, probability = likeness.match_superpoints(np.array([1, 1]), None)
    assert probability == pytest.approx([0.5, 0.5], abs=1e-6)
    # Out of reach is not there: of the two cells like the first point one is next to it.
    match, probability = likeness.match_superpoints(np.array([0]), 0)
    assert (match.tolist(), probability.tolist()) == ([0], [1.0])


def test_exported_parts_match_in_another_runtime(network: MultitaskNetwork, tmp_path: Path, capsys):
    assert main(['export', str(tmp_path / 'net.onnx')]) == 0
    paths = [tmp_path / name for name in ('net.onnx', 'net-encoding.onnx', 'net-description.onnx')]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    encoding, description = (
        onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']) for path in paths[1:]
    )
    for size in ((64, 96), (80, 48)):
        image, maps = make_inputs(*size)
        names = [output.name for output in encoding.get_outputs()]
        pyramid = dict(zip(names, encoding.run(None, {'image': image[None]}), strict=True))
        assert [pyramid[name].shape[2] for name in ('quarter', 'eighth', 'sixteenth')] == [
            size[0] // stride for stride in (4, 8, 16)
        ]
        outputs = ['image_descriptors', 'point_descriptors', 'sharpness']
        cells, points, sharpness = description.run(outputs, {**pyramid, 'point_maps': maps[None]})
        expected = as_arrays(TorchMatcher(network).look(image)(maps))
        np.testing.assert_allclose(cells.reshape(48, -1).T, expected[0], atol=1e-5)
        np.testing.assert_allclose(points.reshape(48, -1).T, expected[1], atol=1e-5)
        np.testing.assert_allclose(sharpness, network.matching_head.sharpness.exp().detach().numpy(), rtol=1e-6)
