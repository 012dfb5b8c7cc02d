"""Loops over many small arrays, compiled by numba when they first run and kept on disk from then on.

numba looks for changes in the file of a function only, so a compiled function calls none of another file, where an
edit would go unnoticed. `select` is the exception: remove __pycache__ (`make clean`) after an edit of this file.
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
    """The value of `rank`, from 0, among `values`, (N,), which come into another order (Hoare 1961)."""
    first, last = 0, len(values) - 1
    while first < last:
        pivot = values[(first + last) // 2]
        i, j = first, last
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            last = j
        elif rank >= i:
            first = i
        else:
            break
    selected: float = values[rank]
    return selected
