"""The cross-modal multitask network: one shared image pyramid, one head per task."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from cmml_ros.errors import ModelError
from cmml_ros.model.image_encoder import ImageEncoder
from cmml_ros.model.interface import COARSE_STRIDE
from cmml_ros.model.matching_head import Descriptors, MatchingHead
from cmml_ros.model.point_encoder import PointEncoder
from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE
from cmml_ros.model.segmentation_head import SegmentationHead

SIZE_CHANNELS: dict[str, tuple[int, int, int, int]] = {
    'small': (16, 32, 64, 128),
    'base': (32, 64, 128, 256),
}


class MultitaskNetwork(nn.Module):
    """Airhole segmentation helped by projected range where there is any, and dense matching of pixels to points."""

    def __init__(self, size: str = 'small') -> None:
        super().__init__()
        if size not in SIZE_CHANNELS:
            raise ModelError(f'unknown network size "{size}"; choose one of {", ".join(SIZE_CHANNELS)}')
        self.size = size
        channels = SIZE_CHANNELS[size]
        self.image_encoder = ImageEncoder(channels)
        self.segmentation_head = SegmentationHead(channels)
        self.point_encoder = PointEncoder(channels)
        self.matching_head = MatchingHead(channels, channels)

    def forward(self, image: Tensor, range_maps: Tensor) -> Tensor:
        """Logits (B, 2, H, W): inside the rim, on the rim.

        image: (B, 3, H, W) float, BGR in [0, 1]. range_maps: (B, 3, H / 2, W / 2) of `range_features`, zeros when
        unknown.
        """
        logits: Tensor = self.segmentation_head(self.encode(image, range_maps))
        return logits

    def encode(self, image: Tensor, range_maps: Tensor | None) -> list[Tensor]:
        """The pyramid that the heads share, maps (B, C_i, H / 2^i, W / 2^i), i = 1..4; arguments as of `forward`."""
        if range_maps is None:
            size = (image.shape[0], RANGE_CHANNELS, image.shape[2] // RANGE_STRIDE, image.shape[3] // RANGE_STRIDE)
            range_maps = image.new_zeros(size)
        # Centred roughly on exposed concrete, before what is left is rounded where the maps are in half precision.
        pyramid: list[Tensor] = self.image_encoder(((image - 0.45) * 4.0).to(range_maps.dtype), range_maps)
        return pyramid

    def describe(self, pyramid: list[Tensor], point_maps: Tensor) -> Descriptors:
        """What pixels and points are matched by.

        pyramid: of the picture alone, since range laid on it would tell where the points are believed to be.
        point_maps: (B, 5, H / 2, W / 2) of `point_features`.
        """
        support = point_maps[:, RANGE_CHANNELS - 1 : RANGE_CHANNELS]
        held = functional.max_pool2d(support, COARSE_STRIDE // RANGE_STRIDE)[:, 0] >= 0.5
        descriptors: Descriptors = self.matching_head(
            pyramid, self.point_encoder(point_maps), held.to(point_maps.dtype)
        )
        return descriptors
