"""The network in torch: the engine on CUDA, and what matches pixels to points everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cmml_ros.model.checkpoint import load_network
from cmml_ros.model.export import Segmentation
from cmml_ros.model.image_encoder import ConvBlock
from cmml_ros.model.network import MultitaskNetwork


class TorchEngine:
    """Engine on any device of torch."""

    def __init__(self, network: MultitaskNetwork, device: str) -> None:
        self._device = torch.device(device)
        self._segmentation = Segmentation(network).to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], range_maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Engine. Raises MemoryError when the GPU has none left, and gives back there what it can."""
        try:
            inputs = (torch.from_numpy(array).to(self._device)[None] for array in (image, range_maps))
            probabilities: NDArray[np.float32] = self._segmentation(*inputs)[0].cpu().numpy()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from None
        return probabilities


def load_for_inference(path: Path, device: str, threads: int) -> MultitaskNetwork:
    """The network in `path` on `device`, normalisation folded into its convolutions. Raises ModelError.

    threads: that torch may use on the CPU, 0 for one per core.
    """
    if threads:
        torch.set_num_threads(threads)
    network, _ = load_network(path)
    return fuse_normalisation(network).to(device)


def fuse_normalisation(network: MultitaskNetwork) -> MultitaskNetwork:
    """Batch normalisation folded into the convolutions before it: same values, a third fewer passes over memory."""
    for module in network.modules():
        if isinstance(module, ConvBlock):
            convolution, normalisation = module[0], module[1]
            assert isinstance(convolution, torch.nn.Conv2d)
            assert isinstance(normalisation, torch.nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(convolution, normalisation).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            module[1] = torch.nn.Identity()
    return network
