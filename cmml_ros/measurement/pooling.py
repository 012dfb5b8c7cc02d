"""The readings of several views of one airhole, measured as if one view had taken them.

Where few readings fall into an opening, a view fills in between them; so does every other view, in much the same way,
and no mean of their volumes knows better. Other readings do: what one view leaves open another one shows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import MeasurementConfig
from cmml_ros.geometry.compiled import compiled
from cmml_ros.measurement.opening import Opening
from cmml_ros.measurement.shape_prior import Prior, fit_cavity
from cmml_ros.measurement.uncertainty import FOOTPRINT_DOUBT, Footprint

Array = NDArray[np.float64]

# A view with more readings leaves nothing open that another one could show.
_MOST_OF_VIEW = 144
# With so many readings further views add nothing either, and memory must not grow with time.
_MOST = 192


@dataclass(frozen=True)
class PooledCavity:
    """Volume, m3, and its variances: from white noise, and from what no reading saw, which all views share.

    unseen_share: of the opening, where no reading ends nearby.
    """

    volume: float
    noise_variance: float
    shape_variance: float
    unseen_share: float


@dataclass(frozen=True, eq=False)
class CavityReadings:
    """Range readings through one opening, of one view or of several.

    axes: (2, 3) unit vectors along the surface, in the frame of the measurement. rows: (N, 5) float32, along these
    axes: where the ray of a reading passes the opening, from the centroid of its rim, and how far the ray goes sideways
    per metre of depth; then its depth below the surface. noise_m: white noise of one depth. spacing_m: distance of the
    readings of one view.
    """

    axes: Array
    rows: NDArray[np.float32]
    noise_m: float
    spacing_m: float
    views: int = 1

    @classmethod
    def of_view(
        cls, axes: Array, entries: Array, drifts: Array, depths: Array, noise_m: float, area_m2: float
    ) -> CavityReadings | None:
        """From entries and drifts, (N, 2) each, and depths, (N,); None where there are none, or no need of others'."""
        if not 0 < len(depths) <= _MOST_OF_VIEW:
            return None
        rows = np.empty((len(depths), 5), np.float32)
        rows[:, :2], rows[:, 2:4], rows[:, 4] = entries, drifts, depths
        return cls(axes, rows, noise_m, math.sqrt(area_m2 / len(depths)))

    def rotated(self, rotation: Array) -> CavityReadings:
        """The same in another frame; rotation: (3, 3)."""
        return dataclasses.replace(self, axes=self.axes @ rotation.T)

    def joined(self, other: CavityReadings) -> CavityReadings:
        """With the readings of another view, in the same frame, rim upon rim; as they are when these are enough."""
        if len(self.rows) >= _MOST:
            return self
        turn = other.axes @ self.axes.T
        rows = np.column_stack([other.rows[:, :2] @ turn, other.rows[:, 2:4] @ turn, other.rows[:, 4]])
        share = other.views / (self.views + other.views)
        return CavityReadings(
            self.axes,
            np.concatenate([self.rows, rows.astype(np.float32)])[:_MOST],
            self.noise_m + share * (other.noise_m - self.noise_m),
            self.spacing_m + share * (other.spacing_m - self.spacing_m),
            self.views + other.views,
        )

    def measure(self, outline: Array, area_m2: float, config: MeasurementConfig) -> PooledCavity | None:
        """The cavity within a rim of that shape and that area; None when no reading lies within, or there is no area.

        outline: (n, 3) from the centroid. The prior on the depth counts with fewer readings than `config.min_points`.
        """
        rim, perimeter = _draw(outline @ self.axes.T, area_m2)
        if perimeter == 0.0:
            return None
        opening, centre, to_circle = Opening.from_rim(rim)
        columns = self.rows.T.astype(np.float64)
        readings = opening.read(
            columns[:2].T.copy(),
            columns[2:4].T.copy(),
            columns[4],
            self.noise_m,
            centre,
            to_circle,
        )
        if readings.number == 0:
            return None
        diameter = 2.0 * opening.radius
        prior = Prior(
            config.prior_depth_ratio_mean * diameter,
            config.prior_depth_ratio_std * diameter,
            config.prior_shape_ratio_std,
        )
        few = readings.number < config.min_points
        footprint = Footprint.of_readings(config.footprint_ratio, self.spacing_m, opening.radius)
        lateral_std = footprint.lateral_std(opening.radius)
        cavity = fit_cavity(opening, readings, prior, lateral_std, use_depth_prior=few)
        spilled = footprint.lost_volume(perimeter, readings.rim_mean)
        shape_variance = cavity.volume.shape_variance + (FOOTPRINT_DOUBT * spilled) ** 2
        return PooledCavity(
            cavity.volume.mean + spilled, cavity.volume.noise_variance, shape_variance, cavity.unseen_share
        )


@compiled
def _draw(polygon: Array, area: float) -> tuple[Array, float]:
    """The polygon, (n, 2), counter-clockwise and scaled to that area, and its perimeter; 0 when it cannot be."""
    doubled, length = 0.0, 0.0
    for i in range(len(polygon)):
        before_x, before_y, x, y = polygon[i - 1, 0], polygon[i - 1, 1], polygon[i, 0], polygon[i, 1]
        doubled += before_x * y - x * before_y
        length += math.hypot(x - before_x, y - before_y)
    if not (abs(doubled) > 0.0 and area > 0.0):
        return polygon, 0.0
    scale = math.sqrt(2.0 * area / abs(doubled))
    drawn = polygon * scale
    return drawn if doubled > 0.0 else drawn[::-1].copy(), scale * length
