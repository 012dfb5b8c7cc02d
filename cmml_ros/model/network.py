"""The cross-modal multitask network: one shared image pyramid, one head per task."""

from __future__ import annotations

from torch import Tensor, nn

from cmml_ros.errors import ModelError
from cmml_ros.model.image_encoder import ImageEncoder
from cmml_ros.model.segmentation_head import SegmentationHead

SIZE_CHANNELS: dict[str, tuple[int, int, int, int]] = {
    'small': (16, 32, 64, 128),
    'base': (32, 64, 128, 256),
}
# Height and width of the input are padded to a multiple of this.
INPUT_MULTIPLE = 16


class MultitaskNetwork(nn.Module):
    """Airhole segmentation from a picture, helped by projected range where there is any."""

    def __init__(self, size: str = 'small') -> None:
        super().__init__()
        if size not in SIZE_CHANNELS:
            raise ModelError(f'unknown network size "{size}"; choose one of {", ".join(SIZE_CHANNELS)}')
        self.size = size
        channels = SIZE_CHANNELS[size]
        self.image_encoder = ImageEncoder(channels)
        self.segmentation_head = SegmentationHead(channels)

    def forward(self, image: Tensor, range_maps: Tensor) -> Tensor:
        """Logits (B, 2, H, W): inside the rim, on the rim.

        image: (B, 3, H, W) float, BGR in [0, 1]. range_maps: (B, 3, H / 2, W / 2) of `range_features`, zeros when
        unknown.
        """
        # Centred roughly on exposed concrete.
        pyramid = self.image_encoder((image - 0.45) * 4.0, range_maps)
        logits: Tensor = self.segmentation_head(pyramid)
        return logits
