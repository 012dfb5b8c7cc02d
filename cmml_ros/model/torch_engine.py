"""The network in torch: the engine and the matcher on CUDA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cmml_ros.model.checkpoint import load_network
from cmml_ros.model.export import PictureEncoding, Segmentation
from cmml_ros.model.image_encoder import ConvBlock
from cmml_ros.model.matcher import Likeness
from cmml_ros.model.matching_head import Descriptors, MatchingHead, dual_log_softmax
from cmml_ros.model.network import MultitaskNetwork


class TorchEngine:
    """Engine on any device of torch."""

    def __init__(self, network: MultitaskNetwork, device: str, precision: str = 'float32') -> None:
        """precision: float32, or float16 of the image encoder, two thirds of the work; network: left as it is."""
        self._device = torch.device(device)
        self._type = torch.float32
        if precision == 'float16':
            self._type = torch.float16
            network = copy.deepcopy(network)
            network.image_encoder.half()
            network.segmentation_head.register_forward_pre_hook(_widen)
        if self._device.type == 'cuda':
            # Else convolutions of float32 round their inputs as coarsely as float16: all of them, in this process.
            torch.backends.cudnn.allow_tf32 = False
        self._segmentation = Segmentation(network).to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], range_maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Engine. Raises MemoryError when the GPU has none left, and gives back there what it can."""
        try:
            maps = self._upload(range_maps).to(self._type)
            probabilities: NDArray[np.float32] = self._segmentation(self._upload(image), maps)[0].cpu().numpy()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from None
        return probabilities

    def _upload(self, array: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
        """`array` as a batch of one; to a GPU from pinned memory, while the CPU goes on."""
        batch = torch.from_numpy(np.require(array, requirements='W'))[None]  # recordings must not be written
        if self._device.type != 'cuda':
            return batch
        return batch.pin_memory().to(self._device, non_blocking=True)


def _widen(_: torch.nn.Module, inputs: tuple[list[Tensor]]) -> tuple[list[Tensor]]:
    """The pyramid in float32: rounded in the head, too, probabilities would be off by more than a thousandth."""
    return ([maps.float() for maps in inputs[0]],)


class TorchMatcher:
    """Matcher on any device of torch."""

    def __init__(self, network: MultitaskNetwork) -> None:
        """network: in evaluation mode, on the device it is to run on."""
        self._network = network

    @torch.inference_mode()
    def look(self, image: NDArray[np.uint8]) -> Callable[[NDArray[np.float32]], Likeness]:
        """See Matcher."""
        # Asked each time: a GPU without memory is left for the CPU.
        device = next(self._network.parameters()).device
        pyramid = PictureEncoding(self._network)(torch.from_numpy(image).to(device)[None])

        @torch.inference_mode()
        def describe(point_maps: NDArray[np.float32]) -> Likeness:
            descriptors = self._network.describe(pyramid, torch.from_numpy(point_maps).to(device)[None])
            return TensorLikeness(descriptors, self._network.matching_head)

        return describe


class TensorLikeness:
    """Likeness by descriptors in tensors, on the device where they lie."""

    def __init__(self, descriptors: Descriptors, head: MatchingHead) -> None:
        """descriptors: of one picture."""
        self._columns = descriptors.image.shape[3]
        self._image, self._points = (maps[0].flatten(1).T for maps in (descriptors.image, descriptors.points))  # (M, C)
        self._head = head

    @torch.inference_mode()
    def match_superpoints(
        self, cells: NDArray[np.int64], reach_cells: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See Likeness."""
        at = torch.from_numpy(cells).to(self._image.device)
        scores = self._head.superpoint_scores(self._points[at], self._image)  # (N, M)
        if reach_cells is not None:
            grid = scores.view(len(at), -1, self._columns)
            grid += _outside(at // self._columns, grid.shape[1], reach_cells)[:, :, None]
            grid += _outside(at % self._columns, grid.shape[2], reach_cells)[:, None, :]
        logarithm, match = dual_log_softmax(scores).max(dim=1)
        return match.cpu().numpy(), logarithm.exp().cpu().numpy()

    @torch.inference_mode()
    def match_points(self, cells: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See Likeness."""
        at, its_windows = (torch.from_numpy(array).to(self._image.device) for array in (cells, windows))
        image = self._image.contiguous()[its_windows.clamp(min=0)]  # (N, K, C)
        scores = self._head.point_scores(self._points[at], image).masked_fill(its_windows < 0, -1e4)
        probability: NDArray[np.float32] = scores.softmax(dim=1).cpu().numpy()
        return probability


def _outside(centres: Tensor, count: int, reach: int) -> Tensor:
    """(N, count): zero within `reach` of each of the N centres, else next to nothing as a logit."""
    steps = (torch.arange(count, device=centres.device) - centres[:, None]).abs()
    return torch.where(steps > reach, -1e4, 0.0)


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
