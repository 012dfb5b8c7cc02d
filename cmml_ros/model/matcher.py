"""What matches pixels to points, through OpenVINO and numpy on the CPU; through torch it is in torch_engine.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import openvino
from numpy.typing import NDArray

from cmml_ros.model.compiled_cache import find_cache, make_onnx_once
from cmml_ros.model.engine import COMPILING, compile_properties
from cmml_ros.model.interface import (
    COARSE_STRIDE,
    FINE_STRIDE,
    IMAGE,
    IMAGE_DESCRIPTORS,
    POINT_DESCRIPTORS,
    POINT_MAPS,
    PYRAMID,
    SHARPNESS,
)

if TYPE_CHECKING:  # it brings torch, which takes seconds to import
    from cmml_ros.model.network import MultitaskNetwork

# Superpoints within so many cells to a side are compared at once: most of their windows is the same.
_GROUP_CELLS = 4 * COARSE_STRIDE // FINE_STRIDE
# Windows of so many points are gathered at once: they fit into a processor's cache.
_POINTS_AT_ONCE = 256


class Likeness(Protocol):
    """How much points laid on a view are like what the picture shows in its cells of FINE_STRIDE pixels.

    Cells, of the picture and of the view alike, are flat indices, row by row.
    """

    def match_superpoints(
        self, cells: NDArray[np.int64], reach_cells: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The cell of the picture (N,) that is most like the points in each of `cells` (N,), and its probability (N,).

        Row and column softmax multiply (dual softmax: Sun et al., LoFTR, CVPR 2021). reach_cells: how many rows and
        columns away the cell may be; None: anywhere.
        """

    def match_points(self, cells: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability (N, K) of each cell of `windows` (N, K) to show the points in `cells` (N,).

        windows: -1 for what is outside the picture, which gets none.
        """


class Matcher(Protocol):
    """The half of the network that matches pixels to points."""

    def look(self, image: NDArray[np.uint8]) -> Callable[[NDArray[np.float32]], Likeness]:
        """What compares points with `image`, (H, W, 3) BGR, H and W multiples of INPUT_MULTIPLE.

        It takes maps (5, H / 2, W / 2) of `point_features`.
        """


class OpenVinoMatcher:
    """Matcher on the CPU, in float32, compiled once for pictures of any size.

    load, threads, model_id: as of OpenVinoEngine. May be used by several threads at once.
    """

    def __init__(self, load: Callable[[], MultitaskNetwork], threads: int, model_id: str = '') -> None:
        cache = find_cache() if model_id else None
        self._onnx = [make_onnx_once(load, model_id, part, cache) for part in ('encoding', 'description')]
        self._properties = compile_properties(threads, 1, cache)

    @cached_property
    def _compiled(self) -> list[openvino.CompiledModel]:
        """Of the picture's encoding and of the description; when first asked for, out of the way of a start."""
        core = openvino.Core()
        with COMPILING:
            return [core.compile_model(core.read_model(onnx), 'CPU', self._properties) for onnx in self._onnx]

    def look(self, image: NDArray[np.uint8]) -> Callable[[NDArray[np.float32]], Likeness]:
        """See Matcher."""
        encoding, description = self._compiled
        # A request of its own each time: between two checks of the extrinsic its memory is given back.
        pyramid = encoding.create_infer_request().infer({IMAGE: image[None]}, share_inputs=True)
        maps = {name: pyramid[name] for name in PYRAMID}

        def describe(point_maps: NDArray[np.float32]) -> Likeness:
            request = description.create_infer_request()
            found = request.infer({**maps, POINT_MAPS: point_maps[None]}, share_inputs=True)
            return ArrayLikeness(found[IMAGE_DESCRIPTORS][0], found[POINT_DESCRIPTORS][0], found[SHARPNESS])

        return describe


class ArrayLikeness:
    """Likeness by descriptors in arrays."""

    def __init__(self, image: NDArray[np.float32], points: NDArray[np.float32], sharpness: NDArray[np.float32]) -> None:
        """image, points: (C, rows, columns) unit vectors. sharpness: (2,), what products of them are multiplied by."""
        self._image = image
        self._points = points.reshape(len(points), -1).T  # (M, C)
        self._sharpness = sharpness

    def match_superpoints(
        self, cells: NDArray[np.int64], reach_cells: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See Likeness."""
        channels, rows, columns = self._image.shape
        reach = max(rows, columns) if reach_cells is None else reach_cells
        row, column = np.divmod(cells, columns)
        group = row // _GROUP_CELLS * columns + column // _GROUP_CELLS
        row_sums = np.empty(len(cells), np.float32)
        column_sums = np.zeros((rows, columns), np.float32)
        compared = []
        for members in (np.flatnonzero(group == number) for number in np.unique(group)):
            its_rows, its_columns = row[members], column[members]
            window = (
                slice(max(its_rows.min() - reach, 0), its_rows.max() + reach + 1),
                slice(max(its_columns.min() - reach, 0), its_columns.max() + reach + 1),
            )
            image = self._image[:, window[0], window[1]]
            cosines = self._points[cells[members]] @ image.reshape(channels, -1)
            # Cosines end at 1: exponentials of this do not overflow, and a row and a column can share them.
            likeness = np.exp(self._sharpness[0] * (cosines - 1.0)).reshape(-1, *image.shape[1:])  # (n, h, w)
            likeness *= _within(its_rows, window[0], image.shape[1], reach)[:, :, None]
            likeness *= _within(its_columns, window[1], image.shape[2], reach)[:, None, :]
            row_sums[members] = likeness.sum(axis=(1, 2))
            column_sums[window] += likeness.sum(axis=0)
            compared.append((members, window, likeness))
        match = np.empty(len(cells), np.int64)
        probability = np.empty(len(cells), np.float32)
        weights = 1.0 / np.sqrt(np.maximum(column_sums, np.finfo(np.float32).tiny))
        for members, window, likeness in compared:
            weighted = np.multiply(likeness, weights[window], out=likeness)
            flat = weighted.reshape(len(members), -1)
            best = flat.argmax(axis=1)
            best_row, best_column = np.divmod(best, weighted.shape[2])
            match[members] = (best_row + window[0].start) * columns + best_column + window[1].start
            probability[members] = flat[np.arange(len(members)), best] ** 2 / row_sums[members]
        return match, probability

    def match_points(self, cells: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See Likeness."""
        image = np.ascontiguousarray(self._image.reshape(len(self._image), -1).T)  # (M, C)
        cosines = np.empty(windows.shape, np.float32)
        for start in range(0, len(cells), _POINTS_AT_ONCE):
            part = slice(start, start + _POINTS_AT_ONCE)
            np.einsum('nc,nkc->nk', self._points[cells[part]], image[windows[part]], out=cosines[part])
        likeness = np.exp(self._sharpness[1] * (cosines - 1.0)) * (windows >= 0)
        probability: NDArray[np.float32] = likeness / likeness.sum(axis=1, keepdims=True)
        return probability


def _within(centres: NDArray[np.int64], window: slice, count: int, reach: int) -> NDArray[np.bool_]:
    """(N, count): which of the `count` rows or columns of the window are within `reach` of each of the N centres."""
    return np.abs(np.arange(window.start, window.start + count) - centres[:, None]) <= reach
