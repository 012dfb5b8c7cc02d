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
from cmml_ros.measurement.shape_prior import Opening, Prior, fit_cavity
from cmml_ros.measurement.uncertainty import FOOTPRINT_DOUBT, Footprint

Array = NDArray[np.float64]

# A view with more readings leaves nothing open that another one could show.
_MOST_OF_VIEW = 144
# With so many readings further views add nothing either, and memory must not grow with time.
_MOST = 192
# The area within a rim is summed up over so many turns of it, ever nearer to the centre.
_TURNS = 16


@dataclass(frozen=True)
class PooledCavity:
    """Volume, m3, and its variances: from white noise, and from what no reading saw, which all views share."""

    volume: float
    noise_variance: float
    shape_variance: float


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
        rim = outline @ self.axes.T
        drawn_m2 = 0.5 * float(np.sum(rim[:, 0] * np.roll(rim[:, 1], -1) - rim[:, 1] * np.roll(rim[:, 0], -1)))
        if drawn_m2 < 0.0:
            rim, drawn_m2 = rim[::-1], -drawn_m2
        if not (drawn_m2 > 0.0 and area_m2 > 0.0):
            return None
        rim = rim * math.sqrt(area_m2 / drawn_m2)
        places, areas = _fill(rim)
        centre = areas @ places / area_m2
        to_circle = _to_circle(places - centre, areas)
        centre_xy = (float(centre[0]), float(centre[1]))
        opening = Opening.from_pixels(np.vstack([places.T, areas]), rim, centre_xy, to_circle)
        entries, drifts, depths = np.split(self.rows.astype(np.float64), [2, 4], axis=1)
        readings = opening.read(
            np.ascontiguousarray(entries),
            np.ascontiguousarray(drifts),
            depths[:, 0].copy(),
            self.noise_m,
            centre_xy,
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
        cavity = fit_cavity(opening, readings, prior, use_depth_prior=few)
        footprint = Footprint.of_readings(config.footprint_ratio, self.spacing_m, opening.radius)
        perimeter = float(np.linalg.norm(rim - np.roll(rim, 1, axis=0), axis=1).sum())
        spilled = footprint.lost_volume(perimeter, readings.rim_mean)
        shape_variance = cavity.volume.shape_variance + (FOOTPRINT_DOUBT * spilled) ** 2
        return PooledCavity(cavity.volume.mean + spilled, cavity.volume.noise_variance, shape_variance)


def _fill(rim: Array) -> tuple[Array, Array]:
    """Places within a rim around the origin, (N, 2), and the area that each stands for, (N,)."""
    after = np.roll(rim, -1, axis=0)
    triangles = 0.5 * (rim[:, 0] * after[:, 1] - rim[:, 1] * after[:, 0])
    edges = np.arange(_TURNS + 1) / _TURNS
    inner, outer = edges[:-1], edges[1:]
    # Of a strip of a triangle: the share of its area, and its centroid along the middle line.
    shares = outer**2 - inner**2
    reaches = 2.0 / 3.0 * (outer**3 - inner**3) / shares
    places = reaches[:, None, None] * (0.5 * (rim + after))
    return places.reshape(-1, 2), (shares[:, None] * triangles).reshape(-1)


def _to_circle(places: Array, areas: Array) -> Array:
    """Area-preserving map, (2, 2), that makes the ellipse with the same second moments a circle."""
    moments, directions = np.linalg.eigh(np.einsum('n,ni,nj->ij', areas, places, places))
    moments = np.maximum(moments, 1e-6 * moments[1])
    stretches = (moments[0] * moments[1]) ** 0.25 / np.sqrt(moments)
    return np.asarray((directions * stretches) @ directions.T)
