"""The network in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.compiled_cache import make_onnx_once
from cmml_ros.model.engine import OpenVinoEngine
from cmml_ros.model.quantize import QuantizedConvolution, load_calibration, quantize


def test_a_convolution_of_8_bits_is_off_by_half_a_step_at_most():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(1, 1, 1)
    convolution.weight.data.fill_(1.0)
    features = torch.linspace(-1.0, 1.0, 1001).reshape(1, 1, 1, -1)
    with torch.inference_mode():
        error = QuantizedConvolution(convolution, -1.0, 1.0)(features) - convolution(features)
    assert float(error.abs().max()) == pytest.approx(1.0 / 255.0, abs=1e-4)


def test_what_lies_beyond_the_calibration_is_clipped():
    convolution = torch.nn.Conv2d(1, 1, 1, bias=False)
    convolution.weight.data.fill_(1.0)
    with torch.inference_mode():
        clipped = QuantizedConvolution(convolution, 0.0, 2.0)(torch.tensor([[[[-1.0, 5.0]]]]))
    np.testing.assert_allclose(clipped.ravel(), [0.0, 2.0], atol=1e-6)


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
    convolutions = sum(isinstance(module, QuantizedConvolution) for module in quantized.modules())
    graph = onnx.load_from_string(make_onnx_once(lambda: network, model_id, 'int8', None)).graph
    # The input and the weights of each, and nothing of the matching head.
    assert sum(node.op_type == 'DequantizeLinear' for node in graph.node) == 2 * convolutions == 2 * 15
