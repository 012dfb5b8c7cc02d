"""The convolutional pyramids that the heads share: of pictures, and (in point_encoder.py) of points laid on a view."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE

IMAGE_CHANNELS = 3


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class PyramidEncoder(nn.Module):
    """Feature maps at the resolution of its input, and at a half, a quarter and an eighth of it."""

    def __init__(self, stem: int, channels: tuple[int, int, int, int]) -> None:
        """stem: channels of the input. channels: of the four maps."""
        super().__init__()
        self.channels = channels
        self.stages = nn.ModuleList(
            [
                nn.Sequential(ConvBlock(stem, channels[0]), ConvBlock(channels[0], channels[0])),
                nn.Sequential(ConvBlock(channels[0], channels[1], stride=2), ConvBlock(channels[1], channels[1])),
                nn.Sequential(ConvBlock(channels[1], channels[2], stride=2), ConvBlock(channels[2], channels[2])),
                nn.Sequential(
                    ConvBlock(channels[2], channels[3], stride=2),
                    # Airholes and their surroundings are larger than what plain 3x3 layers see at this depth.
                    ConvBlock(channels[3], channels[3], dilation=2),
                    ConvBlock(channels[3], channels[3], dilation=4),
                ),
            ]
        )

    def encode(self, features: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, h / 2^i, w / 2^i), i = 0..3, of features (B, stem, h, w), h and w multiples of 8."""
        pyramid = []
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid


class ImageEncoder(PyramidEncoder):
    """Feature maps at 1/2, 1/4, 1/8 and 1/16 of the image's resolution.

    The picture is unshuffled to half resolution (2x2 pixels become channels: nothing is lost, and no layer runs at full
    resolution) and joined there by the range features.
    """

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__(IMAGE_CHANNELS * RANGE_STRIDE**2 + RANGE_CHANNELS, channels)

    def forward(self, image: Tensor, range_maps: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, H / 2^i, W / 2^i), i = 1..4.

        image: (B, 3, H, W) normalised, H and W multiples of 16. range_maps: (B, 3, H / 2, W / 2), zeros when unknown.
        """
        return self.encode(torch.cat([functional.pixel_unshuffle(image, RANGE_STRIDE), range_maps], dim=1))
