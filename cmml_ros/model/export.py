"""The network as ONNX, for runtimes other than torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cmml_ros.errors import ModelError
from cmml_ros.model.cells import CELL_BYTES
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.interface import (
    CELL_PROBABILITIES,
    CELLS,
    IMAGE,
    IMAGE_DESCRIPTORS,
    POINT_DESCRIPTORS,
    POINT_MAPS,
    PROBABILITIES,
    PYRAMID,
    RANGE_MAPS,
    SHARPNESS,
)
from cmml_ros.model.network import MultitaskNetwork
from cmml_ros.model.point_features import POINT_CHANNELS
from cmml_ros.model.quantize import QuantizedSegmentation
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
        logits: Tensor = self.network(_to_batch(image), range_maps)
        return logits.float().sigmoid()


class PictureEncoding(nn.Module):
    """What of matching depends on the picture alone."""

    def __init__(self, network: MultitaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (1, C_i, H / 2^i, W / 2^i), i = 2..4, of image (1, H, W, 3) uint8 BGR, as of `Segmentation`."""
        return self.network.encode(_to_batch(image), None)[1:]


class Description(nn.Module):
    """What pixels and points are matched by."""

    def __init__(self, network: MultitaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, quarter: Tensor, eighth: Tensor, sixteenth: Tensor, point_maps: Tensor) -> tuple[Tensor, ...]:
        """Unit vectors (1, 48, H / 4, W / 4) of the picture's cells and of the points, and sharpness (2,).

        quarter, eighth, sixteenth: of `PictureEncoding`. point_maps: (1, 5, H / 2, W / 2) float32 of `point_features`.
        sharpness: what scalar products are multiplied by to give logits, for superpoints and for points.
        """
        descriptors = self.network.describe([quarter, eighth, sixteenth], point_maps)
        return descriptors.image, descriptors.points, self.network.matching_head.sharpness.exp()


def _to_batch(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2).float() / 255.0


def make_onnx(network: MultitaskNetwork) -> bytes:
    """ONNX model of `Segmentation(network)` for images of any size it takes; the network is in evaluation mode."""
    return _make(
        Segmentation(network), {IMAGE: _example_image(), RANGE_MAPS: _example_maps(RANGE_CHANNELS)}, [PROBABILITIES]
    )


def make_quantized_onnx(quantized: QuantizedSegmentation) -> bytes:
    """ONNX model of a network in 8 bits."""
    cells = torch.zeros(1, _EXAMPLE_PX // 2 + 2, _EXAMPLE_PX // 2 + 2, CELL_BYTES, dtype=torch.uint8)
    return _make(quantized, {CELLS: cells}, [CELL_PROBABILITIES])


def make_encoding_onnx(network: MultitaskNetwork) -> bytes:
    """The same of `PictureEncoding(network)`."""
    return _make(PictureEncoding(network), {IMAGE: _example_image()}, PYRAMID)


def make_description_onnx(network: MultitaskNetwork) -> bytes:
    """The same of `Description(network)`."""
    with torch.no_grad():
        pyramid = PictureEncoding(network)(_example_image())
    inputs = {**dict(zip(PYRAMID, pyramid, strict=True)), POINT_MAPS: _example_maps(POINT_CHANNELS)}
    return _make(Description(network), inputs, [IMAGE_DESCRIPTORS, POINT_DESCRIPTORS, SHARPNESS])


def _example_image() -> Tensor:
    return torch.zeros(1, _EXAMPLE_PX, _EXAMPLE_PX, 3, dtype=torch.uint8)


def _example_maps(channels: int) -> Tensor:
    return torch.zeros(1, channels, _EXAMPLE_PX // RANGE_STRIDE, _EXAMPLE_PX // RANGE_STRIDE)


def _make(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> bytes:
    file = io.BytesIO()
    names = (*inputs, *outputs)
    axes = {
        name: {first: f'{name}_height', first + 1: f'{name}_width'}
        for name in names
        if name != SHARPNESS
        for first in (1 if name in (IMAGE, CELLS, CELL_PROBABILITIES) else 2,)
    }
    with warnings.catch_warnings():
        # torch calls this exporter old; its successor takes ten times as long and needs onnxscript.
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,  # type: ignore[arg-type]
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    return file.getvalue()


def export_onnx(model: str, path: Path) -> list[Path]:
    """Write the weights called `model` as ONNX files and say which: `path` segments, two beside it match.

    Raises ModelError when there are none, or when `path` is a folder.
    """
    if path.is_dir():
        raise ModelError(f'{path} is a folder; name a file in it')
    network, _ = load_network(find_weights(model))
    makers = {
        path: make_onnx,
        path.with_stem(f'{path.stem}-encoding'): make_encoding_onnx,
        path.with_stem(f'{path.stem}-description'): make_description_onnx,
    }
    for out, make in makers.items():
        out.write_bytes(make(network))
    return list(makers)
