"""The convolutional pyramid of points that were laid on a view, like that of the picture."""

from __future__ import annotations

from torch import Tensor

from cmml_ros.model.image_encoder import PyramidEncoder
from cmml_ros.model.point_features import POINT_CHANNELS


class PointEncoder(PyramidEncoder):
    """Feature maps at 1/2, 1/4, 1/8 and 1/16 of the view that the points are laid on."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__(POINT_CHANNELS, channels)

    def forward(self, point_maps: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, H / 2^i, W / 2^i), i = 1..4, of point_maps (B, 5, H / 2, W / 2) by `point_features`."""
        return self.encode(point_maps)
