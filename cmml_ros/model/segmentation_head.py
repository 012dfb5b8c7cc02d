"""Airhole mask and rim from the image pyramid."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from cmml_ros.model.image_encoder import ConvBlock

MASK, RIM = 0, 1


class SegmentationHead(nn.Module):
    """Logits at full resolution: inside the rim, and on the rim.

    Top-down pathway over the pyramid (Lin et al., Feature Pyramid Networks, CVPR 2017), then 2x2 logits per cell of
    the finest map are shuffled into pixels (Shi et al., CVPR 2016).
    """

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(channels)])
        self.blocks = nn.ModuleList([ConvBlock(fine, fine) for fine in channels[:-1]])
        self.logits = nn.Conv2d(channels[0], 2 * 4, 3, padding=1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """(B, 2, H, W) logits, channel MASK and channel RIM."""
        return functional.pixel_shuffle(self.cell_logits(pyramid), 2)

    def cell_logits(self, pyramid: list[Tensor]) -> Tensor:
        """The same (B, 8, H / 2, W / 2): of each channel in turn the 2x2 pixels of a cell, row by row."""
        features = pyramid[-1]
        for level in range(len(pyramid) - 2, -1, -1):
            coarse = functional.interpolate(
                self.laterals[level](features), scale_factor=2.0, mode='bilinear', align_corners=False
            )
            features = self.blocks[level](pyramid[level] + coarse)
        logits: Tensor = self.logits(features)
        return logits
