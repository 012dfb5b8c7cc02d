"""The network, ready to run on pictures."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cmml_ros.config import DetectionConfig
from cmml_ros.errors import ModelError
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.checkpoint import find_weights, load_network
from cmml_ros.model.image_encoder import ConvBlock
from cmml_ros.model.instances import split_instances
from cmml_ros.model.network import INPUT_MULTIPLE, MultitaskNetwork
from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE, range_features
from cmml_ros.model.segmentation_head import MASK, RIM

log = logging.getLogger(__name__)


class Segmenter:
    """Finds the airholes in a picture.

    Loads the weights once; raises ModelError when they cannot be used, or when `device: cuda` is demanded and absent.
    """

    def __init__(self, config: DetectionConfig) -> None:
        self._config = config
        self._device = _choose_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        network, self.model_id = load_network(find_weights(config.model))
        self._network = _fuse_normalisation(network).to(self._device)

    def segment(self, image: NDArray[np.uint8], projected: ProjectedCloud | None) -> list[InstanceMask]:
        """The airholes in `image`, (H, W, 3) uint8 BGR, helped by the points projected into it, if any."""
        mask, rim = self.probabilities(image, projected)
        return split_instances(mask, rim, self._config)

    def probabilities(
        self, image: NDArray[np.uint8], projected: ProjectedCloud | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(H, W) probabilities of "inside the rim of an airhole" and "on such a rim"."""
        height, width = image.shape[:2]
        bottom, right = -height % INPUT_MULTIPLE, -width % INPUT_MULTIPLE
        padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode='edge')
        range_maps = np.zeros(
            (RANGE_CHANNELS, padded.shape[0] // RANGE_STRIDE, padded.shape[1] // RANGE_STRIDE), np.float32
        )
        if projected is not None and self._config.use_range:
            maps = range_features(projected.pixels, projected.points_camera[:, 2], height, width)
            range_maps[:, : maps.shape[1], : maps.shape[2]] = maps
        with torch.inference_mode():
            pixels = torch.from_numpy(padded).to(self._device).permute(2, 0, 1).float().div(255.0)[None]
            logits = self._network(
                pixels.contiguous(memory_format=torch.channels_last),
                torch.from_numpy(range_maps).to(self._device)[None].contiguous(memory_format=torch.channels_last),
            )
            probabilities = logits[0, :, :height, :width].sigmoid().cpu().numpy()  # (2, H, W)
        return probabilities[MASK], probabilities[RIM]


def _choose_device(wanted: str) -> torch.device:
    if wanted == 'cpu':
        return torch.device('cpu')
    if torch.cuda.is_available():
        return torch.device('cuda')
    if wanted == 'cuda':
        raise ModelError(
            'detection.device is "cuda" but torch finds no CUDA device; install a CUDA build or use "auto"'
        )
    log.info('no CUDA device, the network runs on the CPU')
    return torch.device('cpu')


def _fuse_normalisation(network: MultitaskNetwork) -> MultitaskNetwork:
    """Batch normalisation folded into the convolutions before it: same values, a third fewer passes over memory."""
    for module in network.modules():
        if isinstance(module, ConvBlock):
            convolution, normalisation = module[0], module[1]
            assert isinstance(convolution, torch.nn.Conv2d)
            assert isinstance(normalisation, torch.nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(convolution, normalisation).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            module[1] = torch.nn.Identity()
    return network
