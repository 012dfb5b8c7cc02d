"""The network in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch.nn.functional import pixel_unshuffle

from cmml_ros.model.cells import RANGE_STEPS, pack_cells
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.compiled_cache import make_onnx_once
from cmml_ros.model.engine import OpenVinoEngine, compile_properties
from cmml_ros.model.interface import CELLS
from cmml_ros.model.quantize import QuantizedConvolution, Rounding, _read_cells, load_calibration, quantize
from cmml_ros.model.torch_engine import fuse_normalisation


def test_what_was_seen_is_rounded_to_one_of_256_steps():
    rounding = Rounding()
    features = torch.linspace(-1.0, 1.0, 1001)
    assert torch.equal(rounding(features), features)
    error = rounding.eval()(features) - features
    assert float(error.abs().max()) == pytest.approx(1.0 / 255.0, abs=1e-4)


def test_what_lies_beyond_the_calibration_is_clipped():
    clipped = Rounding(0.0, 2.0).eval()(torch.tensor([-1.0, 5.0]))
    np.testing.assert_allclose(clipped, [0.0, 2.0], atol=1e-6)


def test_weights_are_rounded_to_one_of_127_steps_for_each_output():
    convolution = torch.nn.Conv2d(3, 2, 1, bias=False)
    convolution.weight.data[:, :, 0, 0] = torch.tensor([[63.0, 20.4, -31.6], [0.63, 0.204, -0.316]])
    with torch.inference_mode():
        rounded = QuantizedConvolution(convolution)(torch.eye(3)[:, :, None, None])[:, :, 0, 0]
    np.testing.assert_allclose(rounded.T, [[63.0, 20.0, -32.0], [0.63, 0.2, -0.32]], atol=1e-5)


def test_the_first_convolution_reads_cells_as_it_did_pictures_and_maps():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(15, 4, 3, padding=1, bias=False)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    maps = np.stack([rng.integers(-128, 128, (6, 8)), rng.integers(0, 256, (6, 8)), rng.integers(0, 129, (6, 8))])
    maps = (maps * np.array(RANGE_STEPS)[:, None, None]).astype(np.float32)
    picture = (torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255.0)) - 0.45) * 4.0
    with torch.inference_mode():
        expected = convolution(torch.cat([pixel_unshuffle(picture, 2), torch.from_numpy(maps)[None]], dim=1))
        cells = torch.from_numpy(pack_cells(image, maps)).permute(2, 0, 1)[None] * (4.0 / 255.0)
        found = _read_cells(convolution)(cells)
    np.testing.assert_allclose(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5)
    # Padding is off by a quarter of a brightness, of 12 pixels in each of up to 5 cells.
    np.testing.assert_allclose(found, expected, atol=5 * 12 * 0.09 * 0.25 * 4.0 / 255.0)


def test_the_shipped_network_says_the_same_in_8_bits():
    network, _ = load_network(find_weights('small'))
    whole, eight = OpenVinoEngine(lambda: network, 1), OpenVinoEngine(lambda: network, 1, precision='int8')
    both, either = 0, 0
    for picture, maps in load_calibration():
        image = (picture[0].numpy().transpose(1, 2, 0) * 255.0).round().astype(np.uint8)
        expected, found = (engine(image, maps[0].numpy())[0] > 0.5 for engine in (whole, eight))
        both += int((expected & found).sum())
        either += int((expected | found).sum())
    assert either > 2000
    assert both / either > 0.97


def test_quantizing_leaves_the_network_as_it_is_and_gives_integers_to_the_runtime():
    network, model_id = load_network(find_weights('small'))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantized = quantize(network, load_calibration()[:1])
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    convolutions, roundings = (
        sum(isinstance(module, kind) for module in quantized.modules()) for kind in (QuantizedConvolution, Rounding)
    )
    # The cells, what each of 9 + 3 blocks gives, and the 3 sums of the head.
    assert (convolutions, roundings) == (16, 16)
    graph = onnx.load_from_string(make_onnx_once(lambda: network, model_id, 'int8', None)).graph
    assert sum(node.op_type == 'DequantizeLinear' for node in graph.node) == convolutions + roundings


def test_the_runtime_computes_every_convolution_in_integers():
    network, model_id = load_network(find_weights('small'))
    core = openvino.Core()
    model = core.read_model(make_onnx_once(lambda: fuse_normalisation(network), model_id, 'int8', None))
    model.reshape({CELLS: [1, 34, 34, 16]})
    compiled = core.compile_model(model, 'CPU', compile_properties(1, 1, None)).get_runtime_model()
    nodes = [node.get_rt_info() for node in compiled.get_ops()]
    precisions = [
        node['runtimePrecision'].astype(str) for node in nodes if node['layerType'].astype(str) == 'Convolution'
    ]
    assert len(precisions) == 16
    assert set(precisions) <= {'u8', 'i8'}
