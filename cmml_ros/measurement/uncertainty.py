"""What the deviations of a measurement are made of, and what may be claimed.

Law of propagation of uncertainty: JCGM 100:2008 (GUM), 5.1.2; the terms below are uncorrelated. Decision threshold and
detection limit: Currie, Anal. Chem. 40 (1968) 586; ISO 11843-2:2000. Derivations are in docs/measurement.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

# One-sided 95 % quantile of the normal distribution.
UPPER_95 = 1.645
# No close sensor (stereo, structured light, line profiler) is so noisy, and every time-of-flight sensor is noisier.
TIME_OF_FLIGHT_NOISE_M = 0.003
# What share of a variance two views of one airhole have in common; the rest is new in every view. Sensor, extrinsic and
# wall stay the same. Another view sees other parts of the cavity, and the network draws another picture's rim anew: the
# shares are what views of simulated walls have in common when taken from about the same direction, the most they can.
_SHARED = {'shape': 0.5, 'patch': 1.0, 'bias': 1.0, 'boundary': 0.8, 'calibration': 1.0}
# Where a footprint lies on both sides of the rim the wall wins: so much of its width is lost all around. From simulated
# depth cameras at three levels of noise (0.09 to 0.11).
_SPILL = 0.1
# What a footprint costs is uncertain by half: another sensor may do otherwise.
FOOTPRINT_DOUBT = 0.5
# A single view says nothing of what lies between its readings, so each stands for a place known to this share of their
# distance; no worse than to so many radii.
_LATERAL_SHARE = 0.5
_MAX_LATERAL = 0.2
# Nor do those of several views, which lie between each other: they count for the middle of a cell, a sixth of a radius
# wide, and rims are laid upon each other no better.
_CELL_STD = 0.05
# No footprint is wider than so many radii of the rim.
_MAX_FOOTPRINT = 0.4


@dataclass(frozen=True)
class Budget:
    """Variances of one quantity by origin, in its own unit squared.

    New in every view: noise: white noise of the readings. surface: the fit of the reference surface. scale: size of a
    pixel on the surface. In part the same in every view: shape: what no reading saw. boundary: the rim in the image.
    The same in every view: patch: patches of the real surface that deviate from it. bias: what changes all ranges or
    all lengths together. calibration: readings shifted against the mask by the extrinsic.
    """

    noise: float = 0.0
    surface: float = 0.0
    scale: float = 0.0
    shape: float = 0.0
    patch: float = 0.0
    bias: float = 0.0
    boundary: float = 0.0
    calibration: float = 0.0

    @property
    def systematic_std(self) -> float:
        """Standard deviation of what further views of the same airhole do not average out."""
        return math.sqrt(sum(share * getattr(self, origin) for origin, share in _SHARED.items()))

    @property
    def std(self) -> float:
        """Combined standard deviation."""
        return math.sqrt(sum(vars(self).values()))

    @property
    def beside_cavity(self) -> Budget:
        """Without what the readings in the opening do or leave undone, and without its rim."""
        return dataclasses.replace(self, noise=0.0, shape=0.0, boundary=0.0)

    @property
    def stds(self) -> dict[str, float]:
        """Standard deviation from each origin alone, by its name."""
        return {name: math.sqrt(variance) for name, variance in vars(self).items()}


@dataclass(frozen=True)
class Footprint:
    """The patch that one reading averages over, `width_m` wide, and what it takes from a cavity."""

    width_m: float

    @classmethod
    def of_readings(cls, ratio: float, spacing_m: float, radius_m: float) -> Footprint:
        """`ratio` of the distance of the readings, which lie in a rim of that radius."""
        return cls(ratio * min(spacing_m, _MAX_FOOTPRINT * radius_m))

    def lateral_std(self, radius_m: float) -> float:
        """Of the place in a cavity of that radius which a reading of several views belongs to, m.

        Anywhere in its footprint: what lies between the readings of one view those of the others show.
        """
        return math.hypot(self.width_m / math.sqrt(12.0), _CELL_STD * radius_m)

    def lost_volume(self, perimeter_m: float, rim_depth_m: float) -> float:
        """Along a rim where it is that deep within, m3; 0 where that is unknown (NaN)."""
        return 0.0 if math.isnan(rim_depth_m) else _SPILL * self.width_m * perimeter_m * rim_depth_m

    def lost_depth(self, curvature_per_m: float) -> float:
        """At the deepest point of a floor that is curved in both directions, m: its mean over a square."""
        return curvature_per_m * self.width_m**2 / 12.0


@dataclass(frozen=True)
class ExtrinsicStd:
    """Deviation of the extrinsic, the same for every axis."""

    rotation_rad: float
    translation_m: float

    def shift_m(self, distance_m: float) -> float:
        """Deviation of where a reading lies, in any one direction across the view, metres."""
        return math.hypot(self.translation_m, self.rotation_rad * distance_m)


def assume_range_bias(range_noise_m: float, configured_m: float) -> float:
    """Standard deviation of the range error that all readings of one airhole share, metres.

    It cannot be seen in the data. Time-of-flight sensors have one as large as their noise (by material, incidence and
    intensity), so one is assumed for noise that only they have; `configured_m` above zero is the user's word instead.
    """
    if configured_m > 0.0:
        return configured_m
    return range_noise_m if range_noise_m > TIME_OF_FLIGHT_NOISE_M else 0.0


def find_lateral_std(spacing_m: float, radius_m: float) -> float:
    """Of the place in a cavity of that radius which a reading of a single view belongs to, metres.

    spacing_m: distance of the readings.
    """
    return min(_LATERAL_SHARE * spacing_m, _MAX_LATERAL * radius_m)


def find_undamaged_std(noise_m: float, count: int, surface_std_m: float, bias_m: float) -> float:
    """Standard deviation of the mean depth that `count` readings of an undamaged patch would show, metres."""
    return math.sqrt(noise_m**2 / count + surface_std_m**2 + bias_m**2)
