"""From masks and points to measured airholes, one frame at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import MeasurementConfig, SurfaceConfig
from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface, fit_surface
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.measurement.opening import EllipsoidCap, Opening, Readings
from cmml_ros.measurement.point_map import PointMap, mark_near
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.rim import Rim, SeenRim, find_boundary_std, outline_in_image, see_rims
from cmml_ros.measurement.shape_prior import MAX_UNSEEN_SHARE, Prior, fit_cavity
from cmml_ros.measurement.uncertainty import (
    FOOTPRINT_DOUBT,
    UPPER_95,
    Budget,
    ExtrinsicStd,
    Footprint,
    assume_range_bias,
    find_lateral_std,
    find_undamaged_std,
)

__all__ = ['is_flat', 'measure', 'outline_in_image', 'prepare']

Array = NDArray[np.float64]

# The ring grows, to the whole view if need be, until the distance (hence the size of a pixel) is good to this much.
_DISTANCE_TARGET = 0.005
# Within its neighbourhood it grows until the elevation is good to this much of the airhole's diameter.
_ELEVATION_TARGET = 0.004
_LOCAL_GROWTH = 4.0
_RING_GROWTH = 2.0
# Quantification limit (Currie 1968): so many deviations of what an undamaged patch would show, for one of 10 %.
_QUANTIFIED = 10.0
# A volume is measured while what no reading saw adds no more than this share to its deviation.
_MAX_SHAPE_SHARE = 0.15
# Readings that need the prior inform when they bring the deviation of the volume below this share of the prior's.
_MAX_PRIOR_SHARE = 0.5
# Coverage from which a ray passes the opening and not its edge, over that of the rim.
_INSIDE = 1.5


def measure(
    masks: Sequence[InstanceMask],
    projected: ProjectedCloud | None,
    camera: Camera,
    surface: SurfaceConfig,
    config: MeasurementConfig,
    unknown: tuple[Status, str] | None = None,
    extrinsic: ExtrinsicStd | None = None,
) -> list[Measurement]:
    """One Measurement per mask, in its order, in the camera's optical frame.

    projected: the points that the camera sees. unknown: status and reason when there are none. extrinsic: how well the
    points are placed against the picture in this frame, None for what `config` says. What cannot be measured has a
    status and a reason instead of a size; no geometry raises.
    """
    if projected is None:
        status, reason = unknown or (Status.NO_POINTS, 'no point cloud')
        return [Measurement.unknown(status, reason) for _ in masks]
    if extrinsic is None:
        extrinsic = ExtrinsicStd(config.extrinsic_rotation_std_rad, config.extrinsic_translation_std_m)
    points = PointMap.from_cloud(projected, camera)
    occupied = np.zeros((camera.height, camera.width), bool)
    # Step by step, each for all airholes: what a step needs is in the cache of the processor from the second one on.
    rings = [None if rim is None else _Ring.around(rim, surface, occupied) for rim in see_rims(masks, camera)]
    sites = [_Site.find(ring, points, occupied, camera, surface, config) for ring in rings]
    insides = [None if isinstance(site, SurfaceError) else _Inside.look(site, points) for site in sites]
    return [
        _measure_one(mask, site, inside, config, extrinsic)
        for mask, site, inside in zip(masks, sites, insides, strict=True)
    ]


def prepare() -> None:
    """Has all that is compiled in memory, so that no frame waits for it: half a minute once per machine, else a second.

    Measures an airhole of 20 px in a column of points, through a lens.
    """
    camera = Camera(160, 120, 160.0, 160.0, 79.5, 59.5, 'plumb_bob', (0.01, 0.0, 0.0, 0.0))
    pixels = np.stack(np.meshgrid(np.arange(2.0, 158.0, 2.0), np.arange(2.0, 118.0, 2.0)), axis=-1).reshape(-1, 2)
    offset = np.hypot(*(pixels - (79.5, 59.5)).T) / 10.0
    bend = 1e-6 * (pixels[:, 0] - 79.5) ** 2
    points = camera.rays(pixels) * (0.3 + bend + 0.01 * np.sqrt(np.maximum(1.0 - offset**2, 0.0)))[:, None]
    v, u = np.indices((24, 24))
    coverage = np.clip(10.5 - np.hypot(u - 11.5, v - 11.5), 0.0, 1.0).astype(np.float32)
    (measured,) = measure(
        [InstanceMask(coverage, 68, 48, 1.0)],
        ProjectedCloud(points, camera.project(points)[0]),
        camera,
        SurfaceConfig(),
        MeasurementConfig(),
    )
    assert measured.volume_status is Status.MEASURED, measured.reason


def is_flat(measurement: Measurement, config: MeasurementConfig) -> bool:
    """Whether the points rule an airhole out: paint, stains and splashes are dark and flat.

    A cap of an ellipsoid of depth h over a rim of area A has the volume A h / 2; so flat is what has, with 95 %
    probability, less than that of the shallowest airhole of its diameter.
    """
    if measurement.volume_status is not Status.BELOW_DETECTION_LIMIT:
        return False
    least_m3 = 0.5 * config.min_depth_ratio * measurement.equivalent_diameter_m * measurement.area_m2
    return bool(measurement.volume_upper_bound_m3 < least_m3)


class _Ring(NamedTuple):
    """Where undamaged surface is looked for first: from gap_px outside the rim, width_px wide.

    edge: (2, n) columns and rows of the pixels of the mask at its edge.
    """

    rim: SeenRim
    gap_px: float
    width_px: float
    edge: NDArray[np.int64]

    @classmethod
    def around(cls, rim: SeenRim, config: SurfaceConfig, occupied: NDArray[np.bool_]) -> _Ring:
        """Marks in `occupied`, (height, width), the pixels nearer than the gap: too near to show undamaged surface."""
        gap_px = max(config.gap_ratio * rim.diameter_px, config.min_gap_px)
        width_px = max(config.width_ratio * rim.diameter_px, config.min_width_px)
        edge = mark_near(occupied, rim.coverage, rim.level, rim.left, rim.top, gap_px)
        return cls(rim, gap_px, width_px, edge)


class _Site(NamedTuple):
    """An airhole in the image, the undamaged surface around it, and its rim there."""

    seen: SeenRim
    surface: Surface
    rim: Rim

    @classmethod
    def find(
        cls,
        ring: _Ring | None,
        points: PointMap,
        occupied: NDArray[np.bool_],
        camera: Camera,
        surface_config: SurfaceConfig,
        config: MeasurementConfig,
    ) -> _Site | SurfaceError:
        """The error, not raised, says why there is none."""
        if ring is None:
            return SurfaceError('the mask has no area')
        try:
            surface = _fit_around(ring, points, occupied, camera, surface_config, config)
            return cls(ring.rim, surface, Rim.on_surface(ring.rim, surface))
        except SurfaceError as error:
            return error


class _Inside(NamedTuple):
    """An opening, the readings that end within it, and all that passed it, for other views to add to."""

    opening: Opening
    readings: Readings
    shared: CavityReadings | None

    @classmethod
    def look(cls, site: _Site, points: PointMap) -> _Inside:
        """From the points that are seen through the opening."""
        seen, surface, rim = site
        opening = Opening.from_pixels(rim.pixels, rim.outline_xy, rim.centre, rim.to_circle)
        # A ray that passes the opening shows the cavity, wherever its end lies; noise along the ray does not move it in
        # or out of the rim. Not those at the rim itself: there a reading mixes two depths, and in an oblique view the
        # depth jumps.
        passing = points.select_inside(seen.coverage, seen.left, seen.top, _INSIDE * seen.level)
        entries, drifts, depths, mean_cosine = surface.enter(passing)
        noise_m = surface.range_noise_m * mean_cosine
        readings = opening.read(entries, drifts, depths, noise_m, rim.centre, rim.to_circle)
        entries -= rim.centre
        shared = CavityReadings.of_view(surface.axes[:2], entries, drifts, depths, noise_m, rim.area)
        return cls(opening, readings, shared)


def _measure_one(
    mask: InstanceMask,
    site: _Site | SurfaceError,
    inside: _Inside | None,
    config: MeasurementConfig,
    extrinsic: ExtrinsicStd,
) -> Measurement:
    if isinstance(site, SurfaceError) or inside is None:
        status = Status.CUT_BY_BORDER if mask.touches_border else Status.NO_POINTS
        return Measurement.unknown(status, str(site))
    seen, surface, rim = site
    opening, readings, shared = inside
    position, normal, distance, cosine, elevation_std, scale_std = rim.middle
    patch_std = surface.extrapolation * surface.patch_std_m
    bias_m = assume_range_bias(surface.range_noise_m, config.range_bias_m)
    fit_distance_std = math.hypot(elevation_std, patch_std) / cosine
    shared_distance_std = math.hypot(bias_m, surface.extrapolation * config.distance_std_m, extrinsic.translation_m)
    placed = partial(
        Measurement,
        position=position,
        normal=normal,
        outline=rim.outline,
        position_std_m=math.hypot(fit_distance_std, shared_distance_std),
        range_noise_m=surface.range_noise_m,
    )
    if mask.touches_border:
        return placed(Status.CUT_BY_BORDER, Status.CUT_BY_BORDER, reason='the image cuts the airhole')

    scale_bias = 2.0 * math.hypot(shared_distance_std / distance, config.focal_std_ratio)
    boundary_std_px = config.boundary_std_px or mask.boundary_std_px
    if math.isnan(boundary_std_px):
        boundary_std_px = find_boundary_std(seen.softness_px, seen.perimeter_px)
    boundary_std = boundary_std_px * seen.perimeter_px / seen.area_px
    area_budget = Budget(
        scale=(scale_std * rim.area) ** 2,
        patch=(2.0 * patch_std / (cosine * distance) * rim.area) ** 2,
        bias=(scale_bias * rim.area) ** 2,
        boundary=(boundary_std * rim.area) ** 2,
    )
    major_axis_m, minor_axis_m = rim.axes
    sized = partial(
        placed,
        Status.MEASURED,
        area_m2=rim.area,
        area_std_m2=area_budget.std,
        area_budget=area_budget,
        area_systematic_std_m2=area_budget.systematic_std,
        equivalent_diameter_m=2.0 * math.sqrt(rim.area / math.pi),
        major_axis_m=major_axis_m,
        minor_axis_m=minor_axis_m,
        point_count=readings.number,
        readings=shared,
    )
    if readings.number == 0:
        return sized(Status.NO_POINTS, reason='no range point inside the rim')
    surface_std = math.hypot(elevation_std, patch_std)
    undamaged_std = find_undamaged_std(readings.std, readings.number, surface_std, bias_m)
    mean_depth = readings.mean
    limit = config.detection_factor * undamaged_std
    if mean_depth < limit:
        return sized(
            Status.BELOW_DETECTION_LIMIT,
            volume_upper_bound_m3=rim.area * (max(mean_depth, 0.0) + UPPER_95 * undamaged_std),
            reason=f'mean depth {mean_depth * 1e3:.2f} mm is below the detection limit of {limit * 1e3:.2f} mm',
        )

    diameter = 2.0 * opening.radius
    # What is expected of its diameter decides: the depth that was read would choose those that noise made deep.
    expected_depth = EllipsoidCap(opening.radius, config.prior_depth_ratio_mean * diameter).volume / rim.area
    undecided = readings.number < config.min_points or expected_depth < _QUANTIFIED * undamaged_std
    prior = Prior(
        depth_mean=config.prior_depth_ratio_mean * diameter,
        depth_std=config.prior_depth_ratio_std * diameter,
        shape_std=config.prior_shape_ratio_std,
    )
    spacing = math.sqrt(rim.area / readings.number)
    lateral_std = find_lateral_std(spacing, opening.radius)
    cavity = fit_cavity(opening, readings, prior, lateral_std, use_depth_prior=undecided)
    volume, depth = cavity.volume, cavity.depth_max
    rim_depth = max(readings.rim_mean, 0.0)
    perimeter = seen.perimeter_px * math.sqrt(rim.area / seen.area_px)
    footprint = Footprint.of_readings(config.footprint_ratio, spacing, opening.radius)
    spilled = footprint.lost_volume(perimeter, readings.rim_mean)
    blurred = footprint.lost_depth(EllipsoidCap(opening.radius, max(depth.mean, 0.0)).curvature)
    volume_mean = volume.mean + spilled
    volume_budget = Budget(
        noise=volume.noise_variance,
        surface=(volume.common_response * elevation_std) ** 2,
        scale=(scale_std * volume_mean) ** 2,
        shape=volume.shape_variance + (FOOTPRINT_DOUBT * spilled) ** 2,
        patch=(volume.common_response * patch_std) ** 2,
        bias=(volume.common_response * bias_m) ** 2 + (scale_bias * volume_mean) ** 2,
        boundary=(boundary_std * rim.area * rim_depth) ** 2,
        # Shifted against the mask, the readings leave a crescent of sound wall inside it, one diameter long.
        calibration=(extrinsic.shift_m(distance) * diameter * rim_depth) ** 2,
    )
    volume_std = volume_budget.std
    volume_upper_bound = volume_mean + UPPER_95 * volume_std
    if undecided and volume.std > _MAX_PRIOR_SHARE * cavity.volume_prior_std:
        return sized(
            Status.BELOW_DETECTION_LIMIT,
            volume_upper_bound_m3=volume_upper_bound,
            reason=f'{readings.number} range points inside the rim do not decide its depth',
        )
    depth_budget = Budget(
        noise=depth.noise_variance,
        surface=(depth.common_response * elevation_std) ** 2,
        shape=depth.shape_variance + (FOOTPRINT_DOUBT * blurred) ** 2,
        patch=(depth.common_response * patch_std) ** 2,
        bias=(depth.common_response * bias_m) ** 2,
    )
    guessed = undecided or volume.shape_variance > (_MAX_SHAPE_SHARE * volume.mean) ** 2
    guessed = guessed or cavity.unseen_share > MAX_UNSEEN_SHARE
    return sized(
        Status.SHAPE_PRIOR if guessed else Status.MEASURED,
        depth_max_m=depth.mean + blurred,
        depth_max_std_m=depth_budget.std,
        depth_max_systematic_std_m=depth_budget.systematic_std,
        depth_budget=depth_budget,
        volume_budget=volume_budget,
        volume_m3=volume_mean,
        volume_std_m3=volume_std,
        volume_systematic_std_m3=volume_budget.systematic_std,
        volume_upper_bound_m3=volume_upper_bound,
        reason='part of the depth comes from the shape prior' if guessed else '',
    )


def _fit_around(
    ring: _Ring,
    points: PointMap,
    occupied: NDArray[np.bool_],
    camera: Camera,
    config: SurfaceConfig,
    measurement_config: MeasurementConfig,
) -> Surface:
    """The surface through the ring around the rim, a ring as wide as it takes."""
    sight = ring.rim.sight
    if not math.isfinite(sight[0]):
        raise SurfaceError('the lens model has no rays at the airhole')
    width = ring.width_px
    angle = ring.rim.diameter_px / math.sqrt(camera.fx * camera.fy)
    best: Surface | None = None
    least_std = math.inf
    problem = SurfaceError('no range point around the rim')
    height, across = ring.rim.coverage.shape
    while True:
        reach = ring.gap_px + width
        margin = math.ceil(reach)
        left, top = ring.rim.left - margin, ring.rim.top - margin
        right, bottom = ring.rim.left + across + margin, ring.rim.top + height + margin
        box = (left, top, right - left, bottom - top)
        found = points.select_ring(box, occupied, ring.edge, reach, config.max_points)
        if len(found) < config.min_points:
            if len(found):
                problem = SurfaceError(f'only {len(found)} range points around the rim')
        else:
            try:
                fitted = fit_surface(
                    found,
                    sight,
                    patch_angle_rad=angle,
                    curvature_significance=config.curvature_significance,
                    range_noise_m=measurement_config.range_noise_m or None,
                )
            except SurfaceError as error:
                problem = error
            else:
                distance_m = math.hypot(*fitted.origin.tolist())
                std = math.sqrt(float(fitted.covariance[0, 0]))
                good_enough = std < _ELEVATION_TARGET * angle * distance_m or width >= _LOCAL_GROWTH * ring.width_px
                good_enough = good_enough and std < _DISTANCE_TARGET * distance_m
                if good_enough and best is None:
                    return fitted
                # A wider ring has more points, and more of what is no quadric: least wrong is the area on it.
                patch_std = 2.0 * fitted.extrapolation * fitted.patch_std_m / distance_m
                area_std = math.hypot(fitted.at(0.0, 0.0).area_std_ratio, patch_std)
                if area_std < least_std:
                    best, least_std = fitted, area_std
                if good_enough:
                    break
        if left <= 0 and top <= 0 and right >= camera.width and bottom >= camera.height:
            break
        width *= _RING_GROWTH
    if best is None:
        raise problem
    return best
