"""The image pyramid that every head shares."""

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


class ImageEncoder(nn.Module):
    """Feature maps at 1/2, 1/4, 1/8 and 1/16 of the image's resolution.

    The picture is unshuffled to half resolution (2x2 pixels become channels: nothing is lost, and no layer runs at full
    resolution) and joined there by the range features.
    """

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.channels = channels
        stem = IMAGE_CHANNELS * RANGE_STRIDE**2 + RANGE_CHANNELS
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

    def forward(self, image: Tensor, range_maps: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, H / 2^i, W / 2^i), i = 1..4.

        image: (B, 3, H, W) normalised, H and W multiples of 16. range_maps: (B, 3, H / 2, W / 2), zeros when unknown.
        """
        features = torch.cat([functional.pixel_unshuffle(image, RANGE_STRIDE), range_maps], dim=1)
        pyramid = []
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid
