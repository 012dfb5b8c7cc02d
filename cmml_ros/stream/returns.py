"""Which points of a cloud are returns: finite, and not exactly at the sensor, as many drivers write "no return"."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled

# Points that are looked at between two sums over the lanes of a vector register.
_BLOCK = 256


@compiled
def are_all_sound(words: NDArray[np.uint32], width: int, first: int) -> bool:
    """Whether all of `words`, rows of `width` float32 as their bits, are finite, and word `first` of each is not zero.

    One pass at the speed of memory. What lies between the fields counts, too: False says nothing yet.
    """
    # Twice the bits, less one where zero is refused: zero wraps round to above infinity, and so does what is not finite
    # without it.
    less = np.zeros(width * _BLOCK, np.uint32)
    less[first::width] = 1
    largest = np.uint32(0)
    for start in range(0, len(words), len(less)):
        block = words[start : start + len(less)]
        for i in range(len(block)):
            largest = max(largest, np.uint32(np.uint32(block[i] << np.uint32(1)) - less[i]))
    return bool(largest < np.uint32(0xFEFFFFFF))


@compiled
def select_returns(
    rows: NDArray[np.float32], first: int, intensity: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x, y, z from column `first` on, (N, 3), of the rows that are returns, and the column `intensity`, (N,).

    What is not finite in the intensity becomes NaN.
    """
    points, values = np.empty((len(rows), 3), np.float32), np.empty(len(rows), np.float32)
    count = 0
    for row in range(len(rows)):
        x, y, z, value = rows[row, first], rows[row, first + 1], rows[row, first + 2], rows[row, intensity]
        if math.isfinite(x) and math.isfinite(y) and math.isfinite(z) and (x != 0.0 or y != 0.0 or z != 0.0):
            points[count, 0], points[count, 1], points[count, 2] = x, y, z
            values[count] = value if math.isfinite(value) else np.float32(math.nan)
            count += 1
    return points[:count], values[:count]


def prepare() -> None:
    """Has both in memory, for the buffers of rclpy and the read-only ones of recordings."""
    rows = np.ones((1, 4), np.float32)
    for writable in (True, False):
        rows.flags.writeable = writable
        are_all_sound(rows.view(np.uint32).reshape(-1), 4, 0)
        select_returns(rows, 0, 3)
