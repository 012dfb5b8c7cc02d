from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cmml_ros.config import DetectionConfig
from cmml_ros.errors import ModelError
from cmml_ros.model.checkpoint import FORMAT, find_weights, load_network, save_weights
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.runtime import Segmenter, _lay_over, _stretch_levels


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / 'net.safetensors'
    save_weights(MultitaskNetwork('small'), path, {'steps': '0'})
    return path


def test_the_small_network_is_small():
    assert sum(parameter.numel() for parameter in MultitaskNetwork('small').parameters()) < 3_000_000


def test_logits_have_the_resolution_of_the_picture():
    logits = MultitaskNetwork('small').eval()(torch.rand(2, 3, 64, 96), torch.zeros(2, 3, 32, 48))
    assert logits.shape == (2, 2, 64, 96)


def test_weights_survive_the_disk_and_are_known_by_content(weights: Path):
    network, model_id = load_network(weights)
    torch.manual_seed(0)
    for mine, theirs in zip(MultitaskNetwork('small').parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert model_id.startswith('net-')
    assert len(model_id) == len('net-') + 12


def test_fused_runtime_gives_the_networks_probabilities_on_an_odd_picture(weights: Path):
    image = np.random.default_rng(0).integers(0, 256, (70, 91, 3)).astype(np.uint8)
    mask, rim = Segmenter(DetectionConfig(model=str(weights), device='cpu', precision='float32')).probabilities(
        image, None
    )
    assert mask.shape == rim.shape == (70, 91)
    network, _ = load_network(weights)
    padded = np.pad(image, ((0, 10), (0, 5), (0, 0)), mode='edge').transpose(2, 0, 1)[None] / np.float32(255)
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded), torch.zeros(1, 3, 40, 48))
    np.testing.assert_allclose(mask, logits[0, 0, :70, :91].sigmoid(), atol=1e-5)


def test_missing_weights_name_the_setting():
    with pytest.raises(ModelError, match=r'no shipped weights called "large".*detection\.model'):
        find_weights('large')
    with pytest.raises(ModelError, match='no such weights file'):
        find_weights('/nowhere/net.safetensors')


def test_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / 'foreign.safetensors'
    path.write_bytes(b'not weights at all')
    with pytest.raises(ModelError, match='cannot be read as safetensors'):
        load_network(path)
    save_file({'x': torch.zeros(1)}, path)
    with pytest.raises(ModelError, match='not weights of this package'):
        load_network(path)
    save_file({'x': torch.zeros(1)}, path, metadata={'cmml_ros.format': '0', 'cmml_ros.size': 'small'})
    with pytest.raises(ModelError, match='format 0'):
        load_network(path)
    save_file({'x': torch.zeros(1)}, path, metadata={'cmml_ros.format': FORMAT, 'cmml_ros.size': 'small'})
    with pytest.raises(ModelError, match='do not fit'):
        load_network(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    network = MultitaskNetwork('small')
    with torch.no_grad():
        next(network.parameters()).fill_(float('nan'))
    save_weights(network, tmp_path / 'nan.safetensors', {})
    with pytest.raises(ModelError, match='not finite'):
        load_network(tmp_path / 'nan.safetensors')


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks for a machine without CUDA')
def test_demanding_cuda_where_there_is_none_is_refused(weights: Path):
    with pytest.raises(ModelError, match='finds no CUDA device'):
        Segmenter(DetectionConfig(model=str(weights), device='cuda'))


def test_a_large_blob_that_only_the_coarse_picture_shows_is_taken_from_it():
    fine, coarse = np.zeros((2, 160, 240), np.float32), np.zeros((2, 40, 60), np.float32)
    rows, columns = np.mgrid[:40, :60]
    coarse[0] = np.clip(8.5 - np.hypot(rows - 19.5, columns - 29.5), 0, 1)  # 64 px across in the fine picture
    coarse[0, 2:4, 2:4] = 1.0  # a speck
    mask, rim = fine.copy()
    _lay_over(mask, rim, *coarse)
    assert mask.sum() == pytest.approx(np.pi * 32**2, rel=0.03)
    assert not mask[:20, :20].any()
    fine[0, 50:112, 90:155] = 0.9  # most of it was found
    kept, rim = fine.copy()
    _lay_over(kept, rim, *coarse)
    np.testing.assert_array_equal(kept, fine[0])


def _dim_hollow(contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture (360, 480, 3) of grained concrete with a hollow 130 px wide, `contrast` times as bright; and where."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:360, :480]
    inside = np.clip(65.0 - np.hypot(rows - 180.0, columns - 240.0), 0.0, 1.0)
    grain = cv2.GaussianBlur(rng.normal(0.0, 1.0, (360, 480)), (0, 0), 1.0)
    grey = 120.0 * (1.0 - (1.0 - contrast) * inside) * (1.0 + 0.15 * grain / grain.std())
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2), inside >= 0.5


def test_a_wide_hollow_that_is_far_from_black_is_found():
    image, inside = _dim_hollow(0.8)
    mask, _ = Segmenter(DetectionConfig(device='cpu')).probabilities(image, None)
    found = mask >= 0.5
    assert (found & inside).sum() > 0.8 * (found | inside).sum()


def test_levels_are_stretched_alike_in_all_colours_and_no_more_than_by_the_limit():
    ramp = np.repeat(np.arange(80, 160, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    stretched = _stretch_levels(ramp).astype(int)
    assert stretched.min() == 0
    assert stretched.max() == pytest.approx(3 * 79, abs=1)
    tinted = np.clip(ramp.astype(int) + np.array([0, 0, 10]), 0, 255).astype(np.uint8)
    blue, _, red = (_stretch_levels(tinted)[..., channel].astype(int) for channel in range(3))
    dark, bright = blue > 0, red < 255
    assert ((red - blue)[dark & bright] == 30).all()
    even = np.full((64, 64, 3), 90, np.uint8)
    assert (_stretch_levels(even) == 0).all()
