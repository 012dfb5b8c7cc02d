"""What airholes look like, and what depth readings say about one of them.

A cavity is the cap of an ellipsoid through the measured rim, of unknown depth, plus a Gaussian field for what real
airholes add to a cap. Many readings decide all of it; few decide the depth; where nothing is seen (side walls hidden
from an oblique view, gaps of a stereo sensor) the cap and the field's correlation fill in, at the price of a larger
deviation. Derivations and sources are in docs/measurement.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled
from cmml_ros.measurement.opening import CELLS, RIM_MARGIN, Opening, Readings

Array = NDArray[np.float64]

# A volume is not known while more than this share of the opening has no reading nearby: a hidden floor may lie much
# deeper.
MAX_UNSEEN_SHARE = 0.2
# Correlation length of the deviation from a cap, in radii of the rim.
_CORRELATION_LENGTH = 0.4
# A cap's deviation vanishes at the rim; this much of its variance remains there, since rims are not quite ellipses.
_RIM_VARIANCE = 0.05
# How many cells the prior on the deviation counts for against those of the data.
_PRIOR_CELLS = 4.0
# No cavity is so regular that less than this share of the variance expected of it is left.
_MIN_EXCESS = 0.01
# Share of the deviation's variance that depends on the distance from the rim only: cavities are alike all around.
_SYMMETRIC_SHARE = 0.3
# Exponent s of a wall (1 - r^2)^s: 1 for a shallow cap, 1/2 for half an ellipsoid, towards 0 for a box or an overhang.
_ELLIPSOID, _BOX = 0.5, 0.2
# Prior deviation of that exponent: its mean over all directions, and each of its first two harmonics. Those of higher
# order k have 2 / k of it, as the harmonics of any outline with corners; with the first two alone the walls that are
# seen would say too much about those that are hidden.
_STEEPNESS_STD = 0.3
_STEEPNESS_HARMONICS = 6
# So far from a reading, in radii, a place counts as unseen.
_NEAR = 0.3


class Prior(NamedTuple):
    """Depth of a cap, metres, and deviation of a real cavity from it, over its depth."""

    depth_mean: float
    depth_std: float
    shape_std: float


class Posterior(NamedTuple):
    """A quantity of the cavity: mean, its variance from white noise and from what was not seen, and how it answers to
    an error common to all depths (its derivative).
    """

    mean: float
    noise_variance: float
    shape_variance: float
    common_response: float

    @property
    def std(self) -> float:
        """Standard deviation without common errors."""
        return math.sqrt(self.noise_variance + self.shape_variance)


class CavityPosterior(NamedTuple):
    """Depth at the deepest point (m), volume (m3), and the volume's standard deviation before any reading.

    unseen_share: of the opening, where no reading ends nearby.
    """

    depth_max: Posterior
    volume: Posterior
    volume_prior_std: float
    unseen_share: float


def fit_cavity(
    opening: Opening, readings: Readings, prior: Prior, lateral_std: float, *, use_depth_prior: bool
) -> CavityPosterior:
    """What `readings` say about depth and volume; `prior` on the depth counts only with `use_depth_prior`.

    lateral_std: of the place in the cavity that each belongs to, metres.

    Gaussian process regression of the deviation from the cap nearest to the readings (Rasmussen and Williams 2006,
    2.2 and 2.7), with the cap's depth as its explicit basis; the volume is an integral of it (O'Hagan 1991).
    """
    grid = _grid()
    noise = max(readings.std, 1e-4 * opening.radius)
    informed_std = prior.depth_std if use_depth_prior else math.inf
    cap = opening.fit_cap(readings, noise, lateral_std, prior.depth_mean, informed_std, grid.fine)
    # Without a prior on the depth the data decide it: any depth within a radius of the cap's is as good.
    shift = prior.depth_mean - cap.depth if use_depth_prior else 0.0
    depth_std = prior.depth_std if use_depth_prior else opening.radius
    volume, depth_max, volume_prior_std, unseen_share = _infer_cavity(
        *cap,
        shift,
        depth_std,
        opening.cell_areas,
        prior.depth_std,
        prior.shape_std,
        grid.places,
        grid.tapers,
        grid.kernel,
        grid.fine_kernel,
        grid.fine_variance,
        grid.steepness,
        grid.steepness_kernel,
        grid.fine_steepness,
    )
    return CavityPosterior(Posterior(*depth_max), Posterior(*volume), volume_prior_std, unseen_share)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Places over a circle of radius one, and what is a priori known about deviations there; all of it constant.

    places: (2, M) of the cells. fine: (2, F) places at which the deepest point is looked for. tapers: (M,).
    kernel: (M, M), fine_kernel: (M, F), fine_variance: (F,), of a field of unit deviation. steepness: (13, M), and
    fine_steepness: (13, F), how the depth answers to the steepness of the walls, over that of the cap.
    """

    places: Array
    fine: Array
    tapers: Array
    kernel: Array
    fine_kernel: Array
    fine_variance: Array
    steepness: Array
    steepness_kernel: Array
    fine_steepness: Array


@cache
def _grid() -> _Grid:
    def spread(count: int) -> Array:
        axis = (np.arange(count) + 0.5) * (2.0 / count) - 1.0
        return np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2)

    places = spread(CELLS)
    # Cells cut by the rim stand for what of them lies inside.
    places *= np.minimum(1.0, (1.0 - 0.5 / CELLS) / np.hypot(places[:, 0], places[:, 1]))[:, None]
    fine = spread(2 * CELLS + 1)  # one of them in the middle, where most are deepest
    fine = fine[np.hypot(fine[:, 0], fine[:, 1]) < 1.0]
    steepness = _steepness(places)
    return _Grid(
        np.ascontiguousarray(places.T),
        np.ascontiguousarray(fine.T),
        _taper(places),
        _kernel(places, places),
        _kernel(places, fine),
        _taper(fine) ** 2,
        steepness,
        steepness.T @ steepness,
        _steepness(fine),
    )


@compiled
def _find_field_std(
    numbers: NDArray[np.int64], deviations: Array, variances: Array, tapers: Array, prior_std: float
) -> float:
    """Deviation of the field, by moments from the cells, each counted by its information, shrunk to the prior."""
    seen, shares = 0.0, 0.0
    for cell in range(len(numbers)):
        squared = tapers[numbers[cell]] ** 2
        prior_variance = prior_std * prior_std * squared
        share = (prior_variance / (prior_variance + variances[cell])) ** 2
        seen += share * (deviations[cell] ** 2 - variances[cell]) / squared
        shares += share
    variance = (_PRIOR_CELLS * prior_std * prior_std + seen) / (_PRIOR_CELLS + shares)
    return math.sqrt(max(variance, (0.1 * prior_std) ** 2))


@compiled
def _find_unseen_share(numbers: NDArray[np.int64], areas: Array, places: Array, reach: float) -> float:
    """Share of the area in cells further than `reach` from all of `numbers`."""
    x, y = places[0], places[1]
    nearest = np.full(len(areas), math.inf)  # squared
    for number in numbers:
        for cell in range(len(nearest)):
            nearest[cell] = min(nearest[cell], (x[cell] - x[number]) ** 2 + (y[cell] - y[number]) ** 2)
    unseen, total = 0.0, 0.0
    for cell in range(len(areas)):
        total += areas[cell]
        if nearest[cell] > reach * reach:
            unseen += areas[cell]
    return unseen / total


@compiled
def _dot(a: Array, b: Array) -> float:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def _multiply(matrix: Array, vector: Array) -> Array:
    """Rows of a matrix times a vector."""
    product = np.empty(len(matrix))
    for row in range(len(matrix)):
        product[row] = _dot(matrix[row], vector)
    return product


@compiled
def _combine(shares: Array, rows: Array) -> Array:
    """Sum of the rows of a matrix, each times its share; few that are not zero."""
    total = np.zeros(rows.shape[1])
    for row in range(len(rows)):
        if shares[row] != 0.0:
            added = rows[row]
            for i in range(len(total)):
                total[i] += shares[row] * added[i]
    return total


@compiled
def _factorise(matrix: Array) -> None:
    """Cholesky's lower factor of a symmetric positive matrix, in its place; what is above the diagonal stays.

    Two columns at a time: what is left of the matrix is gone through half as often.
    """
    count = len(matrix)
    first, second = np.empty(count), np.empty(count)
    for k in range(0, count, 2):
        last = min(k + 1, count - 1)
        matrix[k, k] = math.sqrt(matrix[k, k])
        for i in range(k + 1, count):
            matrix[i, k] /= matrix[k, k]
            first[i] = matrix[i, k]
        if last == k:
            break
        matrix[last, last] = math.sqrt(matrix[last, last] - first[last] * first[last])
        for i in range(last + 1, count):
            matrix[i, last] = (matrix[i, last] - first[i] * first[last]) / matrix[last, last]
            second[i] = matrix[i, last]
        for i in range(last + 1, count):
            # Slices let the compiler see that the inner loop is straight.
            row = matrix[i, last + 1 : i + 1]
            beside, beyond, by_first, by_second = first[last + 1 : i + 1], second[last + 1 : i + 1], first[i], second[i]
            for j in range(len(row)):
                row[j] -= by_first * beside[j] + by_second * beyond[j]


@compiled
def _whiten(lower: Array) -> Array:
    """Inverse of a lower triangular matrix. Of Cholesky's factor of K: W of W^T W = K^-1."""
    count = len(lower)
    whitening = np.zeros((count, count))
    for i in range(count):
        row = whitening[i]
        for j in range(0, i - 1, 2):
            above, below, by_above, by_below = whitening[j], whitening[j + 1, : j + 2], lower[i, j], lower[i, j + 1]
            for k in range(len(below)):
                row[k] -= by_above * above[k] + by_below * below[k]
        if i % 2 == 1:
            above, by_above = whitening[i - 1, :i], lower[i, i - 1]
            for k in range(len(above)):
                row[k] -= by_above * above[k]
        row[i] = 1.0
        scale = 1.0 / lower[i, i]
        for j in range(i + 1):
            row[j] *= scale
    return whitening


@compiled
def _solve(whitening: Array, right: Array) -> Array:
    """W^T W `right`."""
    x = np.zeros(len(right))
    for i in range(len(right)):
        row = whitening[i, : i + 1]
        white = _dot(row, right)
        for j in range(len(row)):
            x[j] += white * row[j]
    return x


@compiled
def _find_excess(innovation: Array, solved: Array, whitening: Array, white_variances: Array) -> float:
    """Variance that the cells show beyond white noise, over what they were to show, shrunk to one.

    MINQUE (Rao 1971) of the factor s of S in the covariance K = W + S, W white: y^T K^-1 S K^-1 y has the expectation
    s tr((K^-1 S)^2) + tr(K^-1 S K^-1 W). The cap's free depth takes one from the count.
    """
    count = len(innovation)
    inverse = np.zeros((count, count))  # of K, below the diagonal
    for i in range(count):
        row = whitening[i]
        for j in range(i + 1):
            beside, before, share = inverse[j, : j + 1], row[: j + 1], row[j]
            for k in range(len(beside)):
                beside[k] += share * before[k]
    # K^-1 S = 1 - K^-1 W
    trace, square_trace, shown = 0.0, 0.0, 0.0
    for i in range(count):
        shown += solved[i] * (innovation[i] - white_variances[i] * solved[i])
        trace += inverse[i, i] * white_variances[i]
        for j in range(i + 1):
            both = (1.0 if i == j else 2.0) * white_variances[i] * white_variances[j]
            square_trace += both * inverse[i, j] * inverse[i, j]
    shown -= trace - square_trace
    expected = max(count - 2.0 * trace + square_trace - 1.0, 0.0)
    return max((_PRIOR_CELLS + shown) / (_PRIOR_CELLS + expected), _MIN_EXCESS)


@compiled
def _infer(
    value: float,
    gain: Array,
    variance: float,
    excess: float,
    whitening: Array,
    solved: Array,
    white_variances: Array,
) -> tuple[float, float, float, float]:
    """Posterior of a linear functional of the depths, as the fields of `Posterior`.

    value: a priori, and variance. gain: (M,) its prior covariance with the cells, whose own `whitening` whitens and
    gave `solved`. excess: factor of what is not white noise.
    """
    weights = _solve(whitening, gain)
    from_noise = 0.0
    response = 0.0
    for cell in range(len(weights)):
        from_noise += weights[cell] ** 2 * white_variances[cell]
        response += weights[cell]
    shape = excess * (variance - _dot(gain, weights) - from_noise)
    return value + _dot(gain, solved), from_noise, max(shape, 0.0), response


@compiled
def _infer_cavity(
    depth: float,
    volume: float,
    volume_by_depth: float,
    reading_count: int,
    floor: Array,
    numbers: NDArray[np.int64],
    cells: Array,
    shift: float,
    depth_std: float,
    areas: Array,
    prior_depth_std: float,
    prior_shape_std: float,
    places: Array,
    tapers: Array,
    kernel: Array,
    fine_kernel: Array,
    fine_variance: Array,
    steepness: Array,
    steepness_kernel: Array,
    fine_steepness: Array,
) -> tuple[tuple[float, float, float, float], tuple[float, float, float, float], float, float]:
    """Posteriors of volume and greatest depth, the volume's prior deviation, and the unseen share of the opening.

    The first seven are the fields of a `CapFit`; shift, depth_std: how much deeper than that cap a cavity is a priori.
    """
    deviations, by_depth, variances, white_variances = cells[0], cells[1], cells[2], cells[3]
    depth_variance = depth_std**2
    field_variance = _find_field_std(numbers, deviations, variances, tapers, prior_shape_std * depth) ** 2
    steep_variance = (_STEEPNESS_STD * depth) ** 2

    count = len(numbers)
    covariance, innovation = np.empty((count, count)), np.empty(count)
    for i in range(count):
        row, steep = kernel[numbers[i]], steepness_kernel[numbers[i]]
        for j in range(i + 1):
            covariance[i, j] = (
                field_variance * row[numbers[j]]
                + depth_variance * by_depth[i] * by_depth[j]
                + steep_variance * steep[numbers[j]]
            )
        covariance[i, i] += variances[i]
        innovation[i] = deviations[i] - by_depth[i] * shift
    _factorise(covariance)
    whitening = _whiten(covariance)
    solved = _solve(whitening, innovation)
    excess = _find_excess(innovation, solved, whitening, white_variances)

    # The volume: an integral over the cells.
    smoothed, steepened = _combine(areas, kernel), _multiply(steepness, areas)
    variance = field_variance * _dot(areas, smoothed) + steep_variance * _dot(steepened, steepened)
    steep = _combine(steepened, steepness)
    gain = np.empty(count)
    for i in range(count):
        cell = numbers[i]
        gain[i] = volume_by_depth * depth_variance * by_depth[i]
        gain[i] += field_variance * smoothed[cell] + steep_variance * steep[cell]
    volume_posterior = _infer(
        volume + volume_by_depth * shift,
        gain,
        volume_by_depth**2 * depth_variance + variance,
        max(excess, 1.0),
        whitening,
        solved,
        white_variances,
    )
    volume_prior_std = math.sqrt((volume_by_depth * prior_depth_std) ** 2 + variance)

    # The depth where its mean is greatest.
    change = shift + depth_variance * _dot(by_depth, solved)
    solved_at = np.zeros(len(areas))
    for i in range(count):
        solved_at[numbers[i]] = solved[i]
    field_mean = _combine(solved_at, fine_kernel)
    steep_mean = _combine(_multiply(steepness, solved_at), fine_steepness)
    cap, slope = floor[0], floor[1]
    mean = np.empty_like(cap)
    for place in range(len(mean)):
        mean[place] = cap[place] + slope[place] * change
        mean[place] += field_variance * field_mean[place] + steep_variance * steep_mean[place]
    deepest = int(np.argmax(mean))
    there = fine_steepness[:, deepest].copy()
    steep = _combine(there, steepness)
    for i in range(count):
        cell = numbers[i]
        gain[i] = slope[deepest] * depth_variance * by_depth[i]
        gain[i] += field_variance * fine_kernel[cell, deepest] + steep_variance * steep[cell]
    variance = field_variance * fine_variance[deepest] + steep_variance * _dot(there, there)
    depth_posterior = _infer(
        cap[deepest] + slope[deepest] * shift,
        gain,
        slope[deepest] ** 2 * depth_variance + variance,
        excess,
        whitening,
        solved,
        white_variances,
    )

    # Cells without a reading nearby, where readings are dense enough to expect one.
    reach = max(_NEAR, 1.5 * math.sqrt(math.pi / reading_count))
    unseen_share = _find_unseen_share(numbers, areas, places, reach)
    return volume_posterior, depth_posterior, volume_prior_std, unseen_share


def _taper(places: Array) -> Array:
    """Deviation of the field at `places`, (N, 2) in radii."""
    return np.asarray(np.sqrt(np.maximum(1.0 - np.einsum('ij,ij->i', places, places), _RIM_VARIANCE)))


def _steepness(places: Array) -> Array:
    """Change of the depth at `places`, (N, 2) in radii, over that of the cap and over that of the exponent. (13, N).

    Finite difference between half an ellipsoid and a box: all around, and its first harmonics in the direction.
    """
    squared = np.einsum('ij,ij->i', places, places)
    rest = np.maximum(1.0 - squared, 0.1 * RIM_MARGIN)
    change = (rest**_ELLIPSOID - rest**_BOX) / (_ELLIPSOID - _BOX)
    orders = np.arange(1, _STEEPNESS_HARMONICS + 1)
    shares = np.minimum(1.0, 2.0 / orders)
    angles = orders[:, None] * np.arctan2(places[:, 1], places[:, 0])
    around = np.vstack([np.ones(len(places)), shares[:, None] * np.cos(angles), shares[:, None] * np.sin(angles)])
    return np.asarray(change * around)


def _kernel(a: Array, b: Array) -> Array:
    """Covariance of a field of unit deviation at two sets of places in radii, (len(a), len(b))."""
    local = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
    radial = np.abs(np.hypot(a[:, 0], a[:, 1])[:, None] - np.hypot(b[:, 0], b[:, 1]))
    correlation = (1.0 - _SYMMETRIC_SHARE) * _matern(local) + _SYMMETRIC_SHARE * _matern(radial)
    return np.asarray(_taper(a)[:, None] * correlation * _taper(b))


def _matern(distance: Array) -> Array:
    """Matern covariance of smoothness 3/2 and unit variance (Rasmussen and Williams 2006, eq. 4.17)."""
    scaled = distance * (math.sqrt(3.0) / _CORRELATION_LENGTH)
    return np.asarray((1.0 + scaled) * np.exp(-scaled))
