from __future__ import annotations

import locale
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from cmml_ros.cli import main
from cmml_ros.model.checkpoint import find_weights, load_network, save_weights
from cmml_ros.model.engine import Engine, OpenVinoEngine
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.quantize import load_calibration
from cmml_ros.model.torch_engine import TorchEngine, fuse_normalisation

SIZES = [(64, 96), (80, 48), (16, 16)]


@pytest.fixture(scope='module')
def network() -> MultitaskNetwork:
    torch.manual_seed(0)
    network = MultitaskNetwork('small').eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # an untrained one does nothing
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network


def make_inputs(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, rng.normal(size=(3, height // 2, width // 2)).astype(np.float32)


def expected(network: MultitaskNetwork, image: NDArray[np.uint8], maps: NDArray[np.float32]) -> NDArray[np.float32]:
    batch = torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255))
    with torch.inference_mode():
        return network(batch, torch.from_numpy(maps)[None])[0].sigmoid().numpy()


@pytest.mark.parametrize('make', [lambda net: OpenVinoEngine(lambda: net, 1), lambda net: TorchEngine(net, 'cpu')])
def test_every_engine_gives_the_networks_probabilities(network: MultitaskNetwork, make: type[Engine]):
    engine = make(network)
    for size in SIZES:
        image, maps = make_inputs(*size)
        probabilities = engine(image, maps)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected(network, image, maps), atol=1e-5)


def make_real_inputs() -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    return [
        ((picture[0].numpy().transpose(1, 2, 0) * 255.0).round().astype(np.uint8), maps[0].numpy())
        for picture, maps in load_calibration()[:3]
    ]


def test_half_precision_says_the_same_to_a_thousandth():
    network = fuse_normalisation(load_network(find_weights('small'))[0])
    whole, half = TorchEngine(network, 'cpu'), TorchEngine(network, 'cpu', 'float16')
    for image, maps in make_real_inputs():
        expected, found = whole(image, maps), half(image, maps)
        assert expected[0].max() > 0.9
        assert found.dtype == np.float32
        error = np.abs(found - expected)
        assert 0.0 < error.max() < 1e-3
        assert error.mean() < 1e-5
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}  # matching goes on with it


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_a_gpu_says_the_same_as_the_cpu(precision: str):
    network = fuse_normalisation(load_network(find_weights('small'))[0])
    inputs = make_real_inputs()
    expected = [TorchEngine(network, 'cpu')(*each) for each in inputs]
    engine = TorchEngine(network.to('cuda'), 'cuda', precision)
    with ThreadPoolExecutor(3) as threads:
        for one, other in zip(expected, threads.map(lambda each: engine(*each), inputs), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-3)


@pytest.mark.parametrize(
    'make',
    [
        lambda net: OpenVinoEngine(lambda: net, 1),
        lambda net: OpenVinoEngine(lambda: net, 1, precision='int8'),
        lambda net: TorchEngine(net, 'cpu'),
    ],
)
def test_pictures_are_taken_as_messages_give_them(network: MultitaskNetwork, make: type[Engine]):
    engine = make(network)
    image, maps = make_inputs(64, 96)
    expected = engine(image, maps)
    wide = np.zeros((64, 100, 3), np.uint8)
    wide[:, :96] = image
    np.testing.assert_array_equal(engine(wide[:, :96], maps), expected)  # rows are longer than the picture
    image.flags.writeable = False
    np.testing.assert_array_equal(engine(image, maps), expected)


def test_a_result_outlives_the_next_call(network: MultitaskNetwork):
    engine = OpenVinoEngine(lambda: network, 1)
    image, maps = make_inputs(64, 96)
    first = engine(image, maps)
    kept = first.copy()
    engine(255 - image, maps)
    np.testing.assert_array_equal(first, kept)


def test_the_same_picture_gives_the_same_bytes(network: MultitaskNetwork):
    image, maps = make_inputs(64, 96)
    one, other = OpenVinoEngine(lambda: network, 1)(image, maps), OpenVinoEngine(lambda: network, 2)(image, maps)
    np.testing.assert_array_equal(one, other)


def test_threads_that_ask_at_once_get_what_one_alone_would(network: MultitaskNetwork):
    inputs = [make_inputs(height, 96) for height in (64, 80, 64, 80, 64, 80)]
    alone = [OpenVinoEngine(lambda: network, 1)(*one) for one in inputs]
    engine = OpenVinoEngine(lambda: network, 2, parallel=2)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            for one, other in zip(alone, threads.map(lambda each: engine(*each), inputs), strict=True):
                np.testing.assert_array_equal(one, other)


# Without the interpreter ever changing threads for long the first uses of the bindings fall together.
FIRST_USES = """
import os, sys, threading
import openvino, torch
from cmml_ros.model.engine import OpenVinoEngine
from cmml_ros.model.network import MultitaskNetwork
OpenVinoEngine(lambda: MultitaskNetwork('small').eval(), 1)
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)
def use():
    barrier.wait()
    openvino.Type.f32.to_dtype()
threads = [threading.Thread(target=use, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os._exit(0)
"""


def test_no_server_is_told_that_openvino_is_used():
    code = 'import cmml_ros.model.engine, sys, threading; '
    code += 'print(sys.modules["openvino_telemetry"], threading.active_count())'
    process = subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.PIPE, text=True, timeout=60.0)
    assert process.stdout == 'None 1\n'


def test_threads_that_are_first_together_do_not_lock_each_other_out():
    assert subprocess.run([sys.executable, '-c', FIRST_USES], check=False, timeout=120.0).returncode == 0


def test_engines_that_compile_at_once_leave_the_locale_alone(network: MultitaskNetwork):
    before = locale.setlocale(locale.LC_ALL)
    inputs = [make_inputs(16, width) for width in range(16, 16 * 8, 16)]
    for _ in range(4):  # from the second time on out of the cache
        engines = [OpenVinoEngine(lambda: network, 1, model_id='locale') for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda engine: [engine(*each) for each in inputs], engines))
    assert locale.setlocale(locale.LC_ALL) == before


def test_only_a_few_sizes_stay_compiled(network: MultitaskNetwork):
    engine = OpenVinoEngine(lambda: network, 1)
    for width in range(16, 16 * 8, 16):
        engine(*make_inputs(16, width))
    assert len(engine._idle) == 6


def test_an_exported_network_gives_the_same_in_another_runtime(network: MultitaskNetwork, tmp_path: Path):
    save_weights(network, tmp_path / 'net.safetensors', {})
    assert main(['export', str(tmp_path / 'net.onnx'), '--model', str(tmp_path / 'net.safetensors')]) == 0
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx', providers=['CPUExecutionProvider'])
    for size in SIZES:
        image, maps = make_inputs(*size)
        (probabilities,) = session.run(['probabilities'], {'image': image[None], 'range_maps': maps[None]})
        np.testing.assert_allclose(probabilities[0], expected(network, image, maps), atol=1e-5)
