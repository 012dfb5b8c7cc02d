"""The segmentation network as ONNX, for runtimes other than torch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.interface import IMAGE, PROBABILITIES, RANGE_MAPS
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE

_OPSET = 17
_EXAMPLE_PX = 64


class Segmentation(nn.Module):
    """The network between what a camera gives and what is made of its answer."""

    def __init__(self, network: MultitaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, range_maps: Tensor) -> Tensor:
        """Probabilities (1, 2, H, W) of "inside the rim" and "on the rim".

        image: (1, H, W, 3) uint8 BGR, H and W multiples of INPUT_MULTIPLE. range_maps: (1, 3, H / 2, W / 2) float32 of
        `range_features`, zeros when unknown.
        """
        logits: Tensor = self.network(image.permute(0, 3, 1, 2).float() / 255.0, range_maps)
        return logits.sigmoid()


def make_onnx(network: MultitaskNetwork) -> bytes:
    """ONNX model of `Segmentation(network)` for images of any size it takes; the network is in evaluation mode."""
    image = torch.zeros(1, _EXAMPLE_PX, _EXAMPLE_PX, 3, dtype=torch.uint8)
    range_maps = torch.zeros(1, RANGE_CHANNELS, _EXAMPLE_PX // RANGE_STRIDE, _EXAMPLE_PX // RANGE_STRIDE)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # torch calls this exporter old; its successor takes ten times as long and needs onnxscript.
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.onnx.export(
            Segmentation(network).eval(),
            (image, range_maps),
            file,  # type: ignore[arg-type]
            input_names=[IMAGE, RANGE_MAPS],
            output_names=[PROBABILITIES],
            dynamic_axes={
                IMAGE: {1: 'height', 2: 'width'},
                RANGE_MAPS: {2: 'half_height', 3: 'half_width'},
                PROBABILITIES: {2: 'height', 3: 'width'},
            },
            opset_version=_OPSET,
            dynamo=False,
        )
    return file.getvalue()


def export_onnx(model: str, path: Path) -> None:
    """Write the weights called `model` as an ONNX file. Raises ModelError when there are none."""
    network, _ = load_network(find_weights(model))
    path.write_bytes(make_onnx(network))
