"""Cells of 2x2 pixels, 16 bytes each: how the network in 8 bits takes pictures and range maps, and gives probabilities.

Nothing of it then runs at full resolution, or in floating point before its first convolution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import as_compiled, compiled

CELL_BYTES = 16
CELL_PIXELS = 4
# What one step of a byte is in each map of `range_features`, and the byte that means zero: residuals up to 0.2 m to
# either side, scatter up to 27 mm, and support, whose values are negative powers of two.
RANGE_STEPS = (6.0 / 127.0, 1.0 / 64.0, 1.0 / 128.0)
RANGE_ZEROS = (128, 0, 0)
# The byte next to the brightness that the network takes for zero.
MID_GREY = 115
_FACTORS = np.array([1.0 / step for step in RANGE_STEPS], np.float32)


def pack_cells(image: NDArray[np.uint8], range_maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H / 2 + 2, W / 2 + 2, 16): 2 BGR pixels, 2 below, residual, scatter, support and a byte of nothing.

    image: (H, W, 3) BGR, H and W even. range_maps: (3, H / 2, W / 2) of `range_features`. The border is what the
    network takes for zero: it need not be padded.
    """
    rows, columns = range_maps.shape[1:]
    cells = np.empty((rows + 2, columns + 2, CELL_BYTES), np.uint8)
    for border in (cells[0], cells[-1], cells[:, 0], cells[:, -1]):
        border[:] = (MID_GREY,) * 12 + (*RANGE_ZEROS, 0)
    # Two bytes at a time: half as many stores.
    pairs = as_compiled(image).reshape(2 * rows, -1).view(np.uint16)
    _pack(pairs, as_compiled(range_maps), _FACTORS, cells.view(np.uint16))
    return cells


def unpack_cells(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) of the cells' (H / 2, W / 2, 4 C): of each channel in turn the 2 pixels, and the 2 below."""
    rows, columns, depth = probabilities.shape
    # Two floats at a time.
    pairs = np.ascontiguousarray(probabilities).view(np.uint64).reshape(rows, columns, depth // CELL_PIXELS, 2)
    planes = np.ascontiguousarray(pairs.transpose(2, 0, 3, 1)).view(np.float32)
    return planes.reshape(depth // CELL_PIXELS, 2 * rows, 2 * columns)


@compiled
def _pack(
    pairs: NDArray[np.uint16],
    range_maps: NDArray[np.float32],
    factors: NDArray[np.float32],
    cells: NDArray[np.uint16],
) -> None:
    half = np.float32(0.5)
    _, rows, columns = range_maps.shape
    known = np.empty((2, columns), np.uint16)
    for row in range(rows):
        for column in range(columns):
            residual = min(max(range_maps[0, row, column] * factors[0], np.float32(-128.0)), np.float32(127.0))
            scatter = min(range_maps[1, row, column] * factors[1], np.float32(255.0))
            low = np.int32(residual + np.float32(128.5))
            high = np.int32(scatter + half)
            known[0, column] = np.uint16(low | (high << 8))
            known[1, column] = np.uint16(np.int32(range_maps[2, row, column] * factors[2] + half))
        upper, lower, own = pairs[2 * row], pairs[2 * row + 1], cells[row + 1]
        for column in range(columns):
            for pair in range(3):
                own[column + 1, pair] = upper[3 * column + pair]
                own[column + 1, pair + 3] = lower[3 * column + pair]
            own[column + 1, 6] = known[0, column]
            own[column + 1, 7] = known[1, column]
