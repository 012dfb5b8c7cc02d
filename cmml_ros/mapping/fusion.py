"""Many views of many airholes, folded into one value each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmml_ros.measurement.defect import Status

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_NO_STATUS = 127
# What is stated of the scatter between views counts like so many views beside what they show.
_STATED_VIEWS = 4.0
# One in four is known to a third of what it states, which is for those that light or range show badly.
_BETTER_ODDS, _BETTER_RATIO = 1.0 / 3.0, 1.0 / 3.0
_UNSTATED = 1e-12  # weight of a value without a deviation, far below any other: decides only among its like


class Columns:
    """Arrays of one length that grow together, a row per airhole."""

    def __init__(self, **defaults: Any) -> None:
        self._defaults = {name: np.asarray(default) for name, default in defaults.items()}
        self._length = 0
        self._arrays = {name: np.empty((0, *default.shape), default.dtype) for name, default in self._defaults.items()}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name][: self._length]

    def extend(self, count: int) -> None:
        """Add `count` rows of the defaults."""
        capacity = len(next(iter(self._arrays.values())))
        if self._length + count > capacity:
            capacity = max(2 * capacity, self._length + count, 64)
            for name, default in self._defaults.items():
                grown = np.empty((capacity, *default.shape), default.dtype)
                grown[: self._length] = self._arrays[name][: self._length]
                self._arrays[name] = grown
        for name, default in self._defaults.items():
            self._arrays[name][self._length : self._length + count] = default
        self._length += count


class Fusion:
    """Means of some quantities that come with one deviation, over the views that tell most about them.

    A view with a value, measured or with the help of the shape prior, outweighs any number without. Weights are
    information, `w = 1 / std**2`. What is new in each view averages out, what the views share (`Budget`) does not, so
    the mean has the variance `sum(w**2 white**2) / sum(w)**2 + (sum(w systematic) / sum(w))**2` (JCGM 100:2008, 5.2.2).

    proportional: the first quantity is a size, whose deviation grows with it. `std` is then taken over the view's own
    value, else what is measured too small would count for more (D'Agostini, Nucl. Instrum. Methods A 346 (1994) 306).
    """

    def __init__(self, width: int, *, proportional: bool = False) -> None:
        self._proportional = proportional
        self._rows = Columns(
            status=_NO_STATUS,
            sums=np.zeros(width),
            weights=np.zeros(width),
            white=0.0,
            systematic=0.0,
            deviations=0.0,
            squares=np.zeros(4),
            points=0,
            best_weight=0.0,
        )

    def extend(self, count: int) -> None:
        """Add `count` airholes that no view has been seen of."""
        self._rows.extend(count)

    def add(
        self,
        rows: Integers,
        status: Integers,
        values: Array,
        std: Array,
        systematic_std: Array,
        points: Integers | int = 0,
        weighed_by: Array | None = None,
    ) -> NDArray[np.bool_]:
        """Fold one view into each of `rows`, all different; tells for which it is the best one so far.

        The best one has the smallest deviation among those of the best status. values: (n, width), NaN where unknown.
        std, systematic_std: (n,). points: range points in it. weighed_by: (n,) the deviation that makes the weights,
        where `std` is only a part of it.
        """
        weighed_by = std if weighed_by is None else weighed_by
        known = self._rows
        better = status < known['status'][rows]
        more = _kind(status) < _kind(known['status'][rows])
        for name in ('sums', 'weights', 'white', 'systematic', 'deviations', 'squares', 'points'):
            known[name][rows[more]] = 0
        known['best_weight'][rows[better]] = 0
        known['status'][rows[better]] = status[better]
        leading = status == known['status'][rows]
        used = _kind(status) == _kind(known['status'][rows])
        rows, values, std, systematic_std = rows[used], values[used], std[used], systematic_std[used]
        weighed_by = weighed_by[used]
        stated = np.isfinite(std) & np.isfinite(weighed_by) & (weighed_by > 0.0)
        # A value below its deviation is noise, and no scale for it.
        scale = np.fmax(np.abs(values[:, 0]), weighed_by) if self._proportional else np.ones(len(rows))
        with np.errstate(divide='ignore', invalid='ignore'):
            weight = np.where(stated, (scale / weighed_by) ** 2, _UNSTATED)
        systematic = np.where(np.isfinite(systematic_std), np.minimum(systematic_std, std), std)
        white_variance = np.where(stated, std**2 - systematic**2, 0.0)
        finite = np.isfinite(values)
        known['sums'][rows] += np.where(finite, weight[:, None] * np.where(finite, values, 0.0), 0.0)
        known['weights'][rows] += weight[:, None] * finite
        known['white'][rows] += np.where(stated, weight**2 * white_variance, 0.0)
        known['systematic'][rows] += np.where(stated, weight * systematic, 0.0)
        known['deviations'][rows] += np.where(stated, weight, 0.0)
        with np.errstate(divide='ignore', invalid='ignore'):
            precision = scale**2 / white_variance
        precision = np.where(finite[:, 0] & (white_variance > 1e-6 * std**2), precision, 0.0)
        first = np.where(finite[:, 0], values[:, 0], 0.0)
        terms = [precision > 0.0, precision, precision * first, precision * first**2]
        known['squares'][rows] += np.stack(terms, axis=1)
        known['points'][rows] += np.broadcast_to(points, used.shape)[used]
        best = np.zeros(len(used), np.bool_)
        best[used] = leading[used] & (weight > known['best_weight'][rows])
        winners = rows[best[used]]
        known['best_weight'][winners] = weight[best[used]]
        return best

    def means(self, rows: Integers) -> Array:
        """(n, width), NaN where no view knows."""
        with np.errstate(invalid='ignore'):
            return np.asarray(self._rows['sums'][rows] / self._rows['weights'][rows])

    def stds(self, rows: Integers) -> tuple[Array, Array]:
        """Deviation of the mean and the systematic part of it, (n,) each; NaN where no view states one."""
        with np.errstate(invalid='ignore'):
            weight = self._rows['deviations'][rows]
            systematic = self._rows['systematic'][rows] / weight
            std = np.sqrt(self._rows['white'][rows] / weight**2 + systematic**2)
        return std, systematic

    def scatters(self, rows: Integers) -> Array:
        """How well the first quantity of each is known, over what its views state, as they scatter, (n,).

        Root of the mean of two variances, by how probable chi-squared makes each: of those known better, and of those
        known as stated or worse (Birge, Phys. Rev. 40 (1932) 207), shrunk to what is stated with the weight of
        `_STATED_VIEWS`.
        """
        views, total, linear, square = self._rows['squares'][rows].T
        mean = self.means(rows)[:, 0]
        squared = np.fmax(square - 2.0 * mean * linear + mean**2 * total, 0.0)
        if self._proportional:
            squared = squared / mean**2
        freedom = np.fmax(views - 1.0, 0.0)
        better = _BETTER_RATIO**2
        exponent = 0.5 * squared * (1.0 / better - 1.0) + 0.5 * freedom * math.log(better)
        share = 1.0 / (1.0 + np.exp(np.minimum(exponent, 700.0)) / _BETTER_ODDS)
        share = np.where(freedom > 0.0, share, 0.0)  # alone it tells nothing
        worse = np.fmax(1.0, (_STATED_VIEWS + squared) / (_STATED_VIEWS + freedom))
        return np.asarray(np.sqrt(share * better + (1.0 - share) * worse))

    def statuses(self, rows: Integers) -> Integers:
        """Best status of each."""
        return np.asarray(self._rows['status'][rows])

    def points(self, rows: Integers) -> Integers:
        """Range points of all views that count."""
        return np.asarray(self._rows['points'][rows])


def _kind(status: Integers) -> Integers:
    """Statuses whose values are averaged together count as one."""
    return np.where(status == Status.SHAPE_PRIOR, Status.MEASURED, status)
