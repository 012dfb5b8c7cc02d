"""The network, ready to run on pictures."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import DetectionConfig
from cmml_ros.errors import ModelError
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.checkpoint import find_weights, identify
from cmml_ros.model.dents import grow_over_dents
from cmml_ros.model.engine import Engine, OpenVinoEngine
from cmml_ros.model.instances import split_instances
from cmml_ros.model.interface import INPUT_MULTIPLE
from cmml_ros.model.matcher import Matcher, OpenVinoMatcher
from cmml_ros.model.range_features import RANGE_CHANNELS, RANGE_STRIDE, range_pyramid
from cmml_ros.model.rim_edge import settle_rims

if TYPE_CHECKING:  # it brings torch, which takes seconds to import
    from cmml_ros.model.network import MultitaskNetwork

log = logging.getLogger(__name__)

# The network sees airholes up to some 40 pixels as a whole: larger ones in smaller pictures, of at least this side.
_OCTAVES = (4, 8)
_LEAST_SIDE_PX = 64
# On a CPU two frames keep its cores busy while each passes through Python; on a GPU one is uploaded and one measured
# beside the one it works on.
_FRAMES_AT_ONCE = {'cpu': 2, 'cuda': 3}
# A disc of 10 pixels in the smaller picture, 40 or 80 in the full one.
_MIN_COARSE_AREA_PX = 78.5
# So much of a smaller picture is black and beyond white once its levels are stretched, by no more than the gain.
_BLACK_PERCENT, _WHITE_PERCENT = 0.05, 99.5
_MAX_GAIN = 3.0


class Segmenter:
    """Finds the airholes in a picture; several threads may ask at once.

    Raises ModelError when the weights cannot be used, or when `device: cuda` is demanded and absent.
    parallel: pictures that are worked on at once, each by its share of the threads. device: where the network runs, cpu
    or cuda; a GPU whose memory runs out is left for good unless it is demanded.
    """

    def __init__(self, config: DetectionConfig) -> None:
        self._config = config
        self._weights = find_weights(config.model)
        self.model_id = identify(self._weights)
        self.device = _choose_device(config.device)
        self.parallel = min(_FRAMES_AT_ONCE[self.device], config.threads or len(os.sched_getaffinity(0)))
        self._lock = threading.Lock()
        self._engine = self._make_engine()

    @cached_property
    def network(self) -> MultitaskNetwork:
        """The network in torch. A CPU needs it only where it was not made ready for OpenVINO in an earlier run."""
        from cmml_ros.model.torch_engine import load_for_inference

        return load_for_inference(self._weights, self.device, self._config.threads)

    @cached_property
    def matcher(self) -> Matcher:
        """What matches pixels to points by the same network."""
        if self.device == 'cpu':
            return OpenVinoMatcher(lambda: self.network, self._config.threads, self.model_id)
        from cmml_ros.model.torch_engine import TorchMatcher

        return TorchMatcher(self.network)

    def _make_engine(self) -> Engine:
        if self.device == 'cpu':
            config = self._config
            return OpenVinoEngine(lambda: self.network, config.threads, self.model_id, config.precision, self.parallel)
        from cmml_ros.model.torch_engine import TorchEngine

        return TorchEngine(self.network, self.device, 'float32' if self._config.precision == 'float32' else 'float16')

    def segment(self, image: NDArray[np.uint8], projected: ProjectedCloud | None) -> list[InstanceMask]:
        """The airholes in `image`, (H, W, 3) uint8 BGR, helped by the points projected into it, if any."""
        mask, rim, range_maps = self._find(image, projected)
        return settle_rims(split_instances(mask, rim, self._config, range_maps), image, range_maps)

    def probabilities(
        self, image: NDArray[np.uint8], projected: ProjectedCloud | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(H, W) probabilities of "inside the rim of an airhole" and "on such a rim".

        The network runs on the picture, and on a quarter and an eighth of its resolution for what is too large to be
        seen as a whole: a coarse blob counts where finer pictures missed most of it. Range adds to them what it shows.
        """
        mask, rim, _ = self._find(image, projected)
        return mask, rim

    def _find(
        self, image: NDArray[np.uint8], projected: ProjectedCloud | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """The same, and the range maps of the picture where there is range."""
        factors = [
            factor for factor in (1, *_OCTAVES) if factor == 1 or min(image.shape[:2]) // factor >= _LEAST_SIDE_PX
        ]
        if projected is None or not self._config.use_range:
            return *self._look(image, factors, [None] * len(factors)), None
        depths_m = projected.points_camera[:, 2]
        range_maps, behind_m = range_pyramid(projected.pixels, depths_m, image.shape[0], image.shape[1], factors)
        mask, rim = self._look(image, factors, range_maps)
        grow_over_dents(mask, rim, range_maps[0], projected.pixels, behind_m)
        return mask, rim, range_maps[0]

    def _look(
        self, image: NDArray[np.uint8], factors: Sequence[int], range_maps: Sequence[NDArray[np.float32] | None]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the network says of the picture reduced by each of `factors`, the first of which is 1."""
        mask, rim = self._run(image, range_maps[0])
        small = image
        for factor, maps in zip(factors[1:], range_maps[1:], strict=True):
            size = image.shape[1] // factor, image.shape[0] // factor
            small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA), np.uint8)  # from the one before
            _lay_over(mask, rim, *self._run(_stretch_levels(small), maps))
        return mask, rim

    def _run(self, image: NDArray[np.uint8], maps: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Probabilities (2, H, W) of the network on one picture; maps: of `range_features`, None for unknown ones."""
        height, width = image.shape[:2]
        padded, range_maps = _pad(image, maps)
        engine = self._engine
        try:
            return engine(padded, range_maps)[:, :height, :width]
        except MemoryError:
            if self.device == 'cpu' and engine is self._engine:  # not one that another thread has left by now
                raise
            if self._config.device == 'cuda':
                raise ModelError(
                    f'the GPU has no memory left for a picture of {width}x{height}; free some, or use device "auto"'
                ) from None
        with self._lock:
            if self._engine is engine:
                log.warning(
                    'the GPU has no memory left for a picture of %dx%d: from now on the CPU does it', width, height
                )
                self.device = 'cpu'
                self.network.to('cpu')
                self._engine = self._make_engine()
        return self._engine(padded, range_maps)[:, :height, :width]


def _stretch_levels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`image`, (H, W, 3) BGR, from black to white, with one gain and one offset for all colours.

    A wide cavity under an even sky, or in a dark surface, is far from black in it; the network, which learnt from
    pictures that are dark inside most airholes, would pass over it.
    """
    black, white = np.percentile(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (_BLACK_PERCENT, _WHITE_PERCENT))
    gain = min(255.0 / max(white - black, 1.0), _MAX_GAIN)
    levels = np.clip(gain * (np.arange(256) - black), 0.0, 255.0).astype(np.uint8)
    return np.asarray(cv2.LUT(image, levels), np.uint8)


def _pad(image: NDArray[np.uint8], maps: NDArray[np.float32] | None) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Both as the network takes them, (H, W) multiples of INPUT_MULTIPLE: nothing is known of range in the padding."""
    bottom, right = -image.shape[0] % INPUT_MULTIPLE, -image.shape[1] % INPUT_MULTIPLE
    if bottom or right:
        image = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode='edge')
    rows, columns = image.shape[0] // RANGE_STRIDE, image.shape[1] // RANGE_STRIDE
    if maps is not None and maps.shape[1:] == (rows, columns):
        return image, maps
    padded = np.zeros((RANGE_CHANNELS, rows, columns), np.float32)
    if maps is not None:
        padded[:, : maps.shape[1], : maps.shape[2]] = maps
    return image, padded


def _lay_over(
    mask: NDArray[np.float32],
    rim: NDArray[np.float32],
    coarse_mask: NDArray[np.float32],
    coarse_rim: NDArray[np.float32],
) -> None:
    """Put into the maps (H, W) the coarse ones in large blobs of which the fine mask has less than half."""
    above = np.asarray(coarse_mask >= 0.5).view(np.uint8)
    _, blobs, boxes, _ = cv2.connectedComponentsWithStats(above, connectivity=4)
    large = np.flatnonzero(boxes[1:, cv2.CC_STAT_AREA] >= _MIN_COARSE_AREA_PX) + 1
    if len(large) == 0:
        return
    found = cv2.resize(mask, blobs.shape[::-1], interpolation=cv2.INTER_AREA) >= 0.5
    seen = np.bincount(blobs[found], minlength=len(boxes))[large]
    missed = np.isin(blobs, large[seen < 0.5 * boxes[large, cv2.CC_STAT_AREA]])
    if not missed.any():
        return
    size = mask.shape[::-1]
    around = cv2.dilate(missed.astype(np.uint8), np.ones((3, 3), np.uint8))
    chosen = cv2.resize(around, size, interpolation=cv2.INTER_NEAREST) > 0
    for fine, coarse in ((mask, coarse_mask), (rim, coarse_rim)):
        fine[chosen] = cv2.resize(coarse, size)[chosen]


def _choose_device(wanted: str) -> str:
    if wanted == 'cpu':
        return 'cpu'
    if _has_cuda():
        return 'cuda'
    if wanted == 'cuda':
        raise ModelError(
            'detection.device is "cuda" but torch finds no CUDA device; install a CUDA build or use "auto"'
        )
    log.info('no CUDA device, the network runs on the CPU')
    return 'cpu'


def _has_cuda() -> bool:
    try:
        ctypes.CDLL('libcuda.so.1')
    except OSError:  # no driver: torch need not be asked
        return False
    import torch

    return torch.cuda.is_available()
