"""The segmentation network in 8 bits: its convolutions take half the time of those in float32."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from cmml_ros.model.checkpoint import CALIBRATION
from cmml_ros.model.network import MultitaskNetwork

# Weights use 7 of their 8 bits: processors without VNNI add two products in 16 bits, where 8 would overflow.
_WEIGHT_LIMIT = 63


class QuantizedConvolution(nn.Module):
    """A convolution whose input and weights are rounded to 8 bits; ONNX runtimes compute it in integers."""

    _weight_scale: Tensor
    _weight_zero_point: Tensor

    def __init__(self, convolution: nn.Conv2d, low: float, high: float) -> None:
        """low, high: what the input was seen to lie between; beyond it is clipped."""
        super().__init__()
        self._convolution = convolution
        scale = max(max(high, 0.0) - min(low, 0.0), 1e-6) / 255.0
        self._scale, self._zero_point = scale, round(-min(low, 0.0) / scale)
        largest = convolution.weight.detach().abs().amax(dim=(1, 2, 3)).clamp(min=1e-12)
        self.register_buffer('_weight_scale', largest / _WEIGHT_LIMIT)
        self.register_buffer('_weight_zero_point', torch.zeros(len(largest), dtype=torch.int32))

    def forward(self, features: Tensor) -> Tensor:
        """What the convolution gives, (B, C, h, w), of features (B, C', h', w')."""
        convolution = self._convolution
        features = torch.fake_quantize_per_tensor_affine(features, self._scale, self._zero_point, 0, 255)
        weight = torch.fake_quantize_per_channel_affine(
            convolution.weight, self._weight_scale, self._weight_zero_point, 0, -128, 127
        )
        return nn.functional.conv2d(
            features, weight, convolution.bias, convolution.stride, convolution.padding, convolution.dilation
        )


def load_calibration(path: Path = CALIBRATION) -> list[tuple[Tensor, Tensor]]:
    """Pictures (1, 3, S, S) in [0, 1] and range maps (1, 3, S / 2, S / 2) like those the network was trained on."""
    with np.load(path) as archive:
        maps = archive['range_maps'].astype(np.float32)
        pictures = [
            np.asarray(cv2.imdecode(archive[f'picture_{number}'], cv2.IMREAD_COLOR)) for number in range(len(maps))
        ]
    return [
        (torch.from_numpy(picture.transpose(2, 0, 1)[None] / np.float32(255.0)), torch.from_numpy(its_maps)[None])
        for picture, its_maps in zip(pictures, maps, strict=True)
    ]


@torch.no_grad()
def quantize(network: MultitaskNetwork, calibration: Sequence[tuple[Tensor, Tensor]]) -> MultitaskNetwork:
    """A copy of `network` whose segmentation runs in 8 bits, all but its first layer, which joins pictures and range.

    network: with its normalisation folded into the convolutions. calibration: what sets the ranges of the activations
    (static post-training quantisation: Jacob et al., CVPR 2018), as of `load_calibration`.
    """
    quantized = copy.deepcopy(network)
    first = next(module for module in quantized.image_encoder.modules() if isinstance(module, nn.Conv2d))
    owners = [
        (owner, name, child)
        for part in (quantized.image_encoder, quantized.segmentation_head)
        for owner in part.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.Conv2d) and child is not first
    ]
    lows: dict[nn.Module, float] = {child: 0.0 for _, _, child in owners}
    highs = dict(lows)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        lows[module] = min(lows[module], float(inputs[0].min()))
        highs[module] = max(highs[module], float(inputs[0].max()))

    hooks = [child.register_forward_pre_hook(watch) for child in lows]
    for picture, range_maps in calibration:
        quantized(picture, range_maps)
    for hook in hooks:
        hook.remove()
    for owner, name, child in owners:
        setattr(owner, name, QuantizedConvolution(child, lows[child], highs[child]))
    return quantized
