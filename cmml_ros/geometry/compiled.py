"""Loops over many small arrays, compiled by numba when they first run and kept on disk from then on.

numba looks for changes in the file of a function only, so a compiled function calls none of another file, where an
edit would go unnoticed. `select` is the exception: remove __pycache__ (`make clean`) after an edit of this file.
Rows of an array are taken by their numbers: those that it is unpacked or looped into count as strided, and loops over
them take one value at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

ScalarT = TypeVar('ScalarT', bound=np.generic)
FunctionT = TypeVar('FunctionT', bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {'nogil': True, 'error_model': 'numpy', 'fastmath': {'reassoc', 'contract'}}


def compiled(function: FunctionT) -> FunctionT:
    """`function` in machine code, with the rules of numpy for division by zero; other threads go on meanwhile.

    Sums come in the order that is fastest, so the last digits may differ between machines.

    Kept beside its source, or in the user's cache when that cannot be written, or where NUMBA_CACHE_DIR says; compiled
    again in every process when there is no such place.
    """
    try:
        return cast(FunctionT, numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # numba's word for "nowhere to write"
        return cast(FunctionT, numba.njit(**_OPTIONS)(function))


def as_compiled(values: NDArray[ScalarT]) -> NDArray[ScalarT]:
    """`values` as compiled functions take them: for another layout or a read-only array they would be compiled anew."""
    if values.flags.carray:
        return values
    return np.require(values, values.dtype, ['C', 'W'])


@compiled
def select(values: NDArray[np.float64], rank: int) -> float:
    """The value of `rank`, from 0, among `values`, (N,), which come into another order: no larger ones before it.

    Quickselect (Hoare 1961) that parts by Lomuto's scheme, where no branch depends on a value: a processor guesses
    every other such branch wrongly.
    """
    first, end = 0, len(values)
    while end - first > 1:
        low, middle, high = values[first], values[(first + end) // 2], values[end - 1]
        pivot = max(min(low, middle), min(max(low, middle), high))
        smaller = first
        for i in range(first, end):
            value = values[i]
            values[i], values[smaller] = values[smaller], value
            smaller += value < pivot
        if rank < smaller:
            end = smaller
            continue
        if smaller > first:
            first = smaller
            continue
        # The pivot is the least: those like it come next.
        for i in range(first, end):
            value = values[i]
            values[i], values[smaller] = values[smaller], value
            smaller += not value > pivot
        if rank < smaller:
            break
        first = smaller
    selected: float = values[rank]
    return selected
