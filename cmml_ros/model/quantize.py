"""The segmentation network in 8 bits: its convolutions take half the time of those in float32."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from cmml_ros.model.cells import CELL_BYTES, RANGE_STEPS, RANGE_ZEROS, pack_cells
from cmml_ros.model.checkpoint import CALIBRATION
from cmml_ros.model.image_encoder import ConvBlock
from cmml_ros.model.network import MultitaskNetwork

# Weights use 7 of their 8 bits: processors without VNNI add two products in 16 bits, where 8 would overflow.
_WEIGHT_LIMIT = 63
# The network centres and scales the bytes of a picture by these.
_PIXEL_STEP, _ZERO_PIXEL = 4.0 / 255.0, 0.45 * 255.0


class Rounding(nn.Module):
    """Values rounded to 8 bits, between the extremes that are seen while it trains; beyond them they are clipped."""

    def __init__(self, low: float = 0.0, high: float = 0.0) -> None:
        """low, high: seen before."""
        super().__init__()
        self._low, self._high = low, high

    def forward(self, features: Tensor) -> Tensor:
        """Of the same shape; as they are while it trains."""
        if self.training:
            self._low, self._high = min(self._low, float(features.min())), max(self._high, float(features.max()))
            return features
        scale = max(self._high - self._low, 1e-6) / 255.0
        return torch.fake_quantize_per_tensor_affine(features, scale, round(-self._low / scale), 0, 255)


class QuantizedConvolution(nn.Module):
    """A convolution whose weights are rounded to 8 bits; runtimes compute it in integers where its input is, too."""

    _weight_scale: Tensor
    _weight_zero_point: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._convolution = convolution
        largest = convolution.weight.detach().abs().amax(dim=(1, 2, 3)).clamp(min=1e-12)
        self.register_buffer('_weight_scale', largest / _WEIGHT_LIMIT)
        self.register_buffer('_weight_zero_point', torch.zeros(len(largest), dtype=torch.int32))

    def forward(self, features: Tensor) -> Tensor:
        """What the convolution gives, (B, C, h, w), of features (B, C', h', w')."""
        convolution = self._convolution
        weight = torch.fake_quantize_per_channel_affine(
            convolution.weight, self._weight_scale, self._weight_zero_point, 0, -128, 127
        )
        return nn.functional.conv2d(
            features, weight, convolution.bias, convolution.stride, convolution.padding, convolution.dilation
        )


class QuantizedSegmentation(nn.Module):
    """The segmentation in 8 bits, by cells of 2x2 pixels."""

    def __init__(self, network: MultitaskNetwork) -> None:
        """network: in evaluation mode, left as it is. To be shown what it will see before it is in evaluation mode."""
        super().__init__()
        network = copy.deepcopy(network)
        self._encoder, self._head = network.image_encoder, network.segmentation_head
        first = next(module for module in self._encoder.modules() if isinstance(module, ConvBlock))
        assert isinstance(first[0], nn.Conv2d)
        first[0] = _read_cells(first[0])
        for part in (self._encoder, self._head):
            for owner in list(part.modules()):
                for name, child in list(owner.named_children()):
                    if isinstance(child, nn.Conv2d):
                        setattr(owner, name, QuantizedConvolution(child))
                if isinstance(owner, ConvBlock):
                    owner.append(Rounding())
        # What is the sum of two maps is rounded again.
        self._head.blocks = nn.ModuleList([nn.Sequential(Rounding(), block) for block in self._head.blocks])
        # Bytes as they are, in a form that runtimes know for integers.
        self._bytes = Rounding(0.0, 255.0 * _PIXEL_STEP)

    def forward(self, cells: Tensor) -> Tensor:
        """Probabilities (1, H / 2, W / 2, 8) as `unpack_cells` takes them.

        cells: (1, H / 2 + 2, W / 2 + 2, 16) uint8 of `pack_cells`.
        """
        features = self._bytes(cells.permute(0, 3, 1, 2).float() * _PIXEL_STEP)
        logits: Tensor = self._head.cell_logits(self._encoder.encode(features))
        return logits.sigmoid().permute(0, 2, 3, 1)


def _read_cells(convolution: nn.Conv2d) -> nn.Conv2d:
    """The first convolution of the network for cells, bytes times _PIXEL_STEP, that bring their padding with them."""
    weight = convolution.weight.detach()
    count, maps = len(weight), len(RANGE_STEPS)
    # Unshuffled pixels come by colour, row and column; in cells by row, column and colour.
    pixels = weight[:, :-maps].reshape(count, 3, 2, 2, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(count, -1, 3, 3)
    steps = torch.tensor(RANGE_STEPS) / _PIXEL_STEP
    ranges = weight[:, -maps:] * steps[:, None, None]
    zeros = torch.tensor(RANGE_ZEROS, dtype=torch.float32)
    bias = torch.zeros(count) if convolution.bias is None else convolution.bias.detach()
    bias = bias - _PIXEL_STEP * (_ZERO_PIXEL * pixels.sum(dim=(1, 2, 3)) + (ranges.sum(dim=(2, 3)) * zeros).sum(dim=1))
    reading = nn.Conv2d(CELL_BYTES, count, 3)
    reading.weight = nn.Parameter(torch.cat([pixels, ranges, torch.zeros(count, 1, 3, 3)], dim=1))
    reading.bias = nn.Parameter(bias)
    return reading


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
def quantize(network: MultitaskNetwork, calibration: Sequence[tuple[Tensor, Tensor]]) -> QuantizedSegmentation:
    """The segmentation of `network` in 8 bits.

    network: in evaluation mode. calibration: what sets the ranges of the activations (static post-training
    quantisation: Jacob et al., CVPR 2018), as of `load_calibration`.
    """
    quantized = QuantizedSegmentation(network)
    for picture, range_maps in calibration:
        image = (picture[0].numpy().transpose(1, 2, 0) * 255.0).round().astype(np.uint8)
        quantized(torch.from_numpy(pack_cells(image, range_maps[0].numpy()))[None])
    return quantized.eval()
