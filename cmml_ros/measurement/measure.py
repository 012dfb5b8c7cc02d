"""From masks and points to measured airholes, one frame at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.config import MeasurementConfig, SurfaceConfig
from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface, fit_surface
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.measurement.rim import Rim, find_boundary_std, find_rim_level, outline_in_image
from cmml_ros.measurement.shape_prior import Opening, Prior, Readings, fit_cavity
from cmml_ros.measurement.uncertainty import (
    UPPER_95,
    Budget,
    ExtrinsicStd,
    assume_range_bias,
    find_undamaged_std,
)

__all__ = ['is_flat', 'measure', 'outline_in_image']

Array = NDArray[np.float64]

# The ring grows, to the whole view if need be, until the distance (hence the size of a pixel) is good to this much.
_DISTANCE_TARGET = 0.005
# Within its neighbourhood it grows until the elevation is good to this much of the airhole's diameter.
_ELEVATION_TARGET = 0.004
_LOCAL_GROWTH = 4.0
_RING_GROWTH = 2.0
# A volume is measured while what no reading saw adds no more than this share to its deviation.
_MAX_SHAPE_SHARE = 0.15
# Nor while more than this share of the opening has no reading nearby: a hidden floor may lie much deeper.
_MAX_UNSEEN_SHARE = 0.2
# Few readings inform when they bring the deviation of the volume below this share of the prior's.
_MAX_PRIOR_SHARE = 0.5
# Coverage from which a ray passes the opening and not its edge, over that of the rim.
_INSIDE = 1.5
# Readings beyond so many radii lie under an undercut rim, outside the rim polygon.
_UNDERCUT = 1.1
# Readings beyond so many radii tell how deep it is at the rim.
_RIM_ZONE = 0.9
_OUTLIER = 6.0
_MAD_TO_STD = 1.4826


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
    points = _PointMap(projected, camera)
    occupied = _find_occupied(masks, camera, surface)
    return [_measure_one(mask, points, occupied, camera, surface, config, extrinsic) for mask in masks]


def is_flat(measurement: Measurement, config: MeasurementConfig) -> bool:
    """Whether the points rule an airhole out: paint, stains and splashes are dark and flat.

    A cap of an ellipsoid of depth h over a rim of area A has the volume A h / 2; so flat is what has, with 95 %
    probability, less than that of the shallowest airhole of its diameter.
    """
    if measurement.volume_status is not Status.BELOW_DETECTION_LIMIT:
        return False
    least_m3 = 0.5 * config.min_depth_ratio * measurement.equivalent_diameter_m * measurement.area_m2
    return bool(measurement.volume_upper_bound_m3 < least_m3)


class _PointMap:
    """Points by the pixel they project to.

    points: (N, 3) camera frame, pixels: (N, 2) where they project to, columns and rows: (N,) the same in whole pixels.
    """

    def __init__(self, projected: ProjectedCloud, camera: Camera) -> None:
        usable = np.isfinite(projected.points_camera).all(axis=1) & (projected.points_camera[:, 2] > 0.0)
        usable &= camera.contains(projected.pixels)
        self.points = projected.points_camera[usable]
        self.pixels = projected.pixels[usable]
        self.columns, self.rows = np.rint(self.pixels).astype(np.int32).T
        # Tiles are numbered along rows, so that a run of tiles is one slice; 16 bits make the sort a radix sort.
        self._tile_px = 16
        while (camera.width // self._tile_px + 1) * (camera.height // self._tile_px + 1) > np.iinfo(np.uint16).max:
            self._tile_px *= 2
        self._tiles_x = camera.width // self._tile_px + 1
        self._tiles_y = camera.height // self._tile_px + 1
        tiles = (self.rows // self._tile_px * self._tiles_x + self.columns // self._tile_px).astype(np.uint16)
        self._order = np.argsort(tiles, kind='stable')
        counts = np.bincount(tiles, minlength=self._tiles_x * self._tiles_y)
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def find(self, left: int, top: int, width: int, height: int) -> NDArray[np.int64]:
        """Numbers of the points in a box of pixels, which may reach beyond the image."""
        first, last = (min(max(u // self._tile_px, 0), self._tiles_x - 1) for u in (left, left + width - 1))
        low, high = (min(max(v // self._tile_px, 0), self._tiles_y - 1) for v in (top, top + height - 1))
        runs = [
            self._order[self._starts[row * self._tiles_x + first] : self._starts[row * self._tiles_x + last + 1]]
            for row in range(low, high + 1)
        ]
        found = np.concatenate(runs)
        u, v = self.columns[found], self.rows[found]
        return np.asarray(found[(u >= left) & (u < left + width) & (v >= top) & (v < top + height)])


def _has_area(mask: InstanceMask) -> bool:
    return bool(np.isfinite(mask.coverage).all() and mask.area_px > 0.0)


def _ring_px(mask: InstanceMask, surface: SurfaceConfig) -> tuple[float, float]:
    """Where the ring starts outside the rim, and its width."""
    diameter = mask.equivalent_diameter_px
    return max(surface.gap_ratio * diameter, surface.min_gap_px), max(
        surface.width_ratio * diameter, surface.min_width_px
    )


def _distance_outside(mask: InstanceMask, reach_px: float) -> tuple[NDArray[np.float32], int, int]:
    """Distance of each pixel from the mask, on a window `reach_px` larger than it, and the window's left and top."""
    margin = math.ceil(reach_px) + 1
    outside = np.pad((mask.coverage < find_rim_level(mask)).astype(np.uint8), margin, constant_values=1)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(distance, np.float32), mask.left - margin, mask.top - margin


def _find_occupied(masks: Sequence[InstanceMask], camera: Camera, surface: SurfaceConfig) -> NDArray[np.bool_]:
    """Pixels too near to any airhole to show undamaged surface, (H, W)."""
    occupied = np.zeros((camera.height, camera.width), bool)
    for mask in masks:
        if not _has_area(mask):
            continue
        gap, _ = _ring_px(mask, surface)
        distance, left, top = _distance_outside(mask, gap)
        bottom, right = top + distance.shape[0], left + distance.shape[1]
        part = occupied[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        near = distance[max(-top, 0) :, max(-left, 0) :] < gap
        part |= near[: part.shape[0], : part.shape[1]]
    return occupied


def _measure_one(
    mask: InstanceMask,
    points: _PointMap,
    occupied: NDArray[np.bool_],
    camera: Camera,
    surface_config: SurfaceConfig,
    config: MeasurementConfig,
    extrinsic: ExtrinsicStd,
) -> Measurement:
    try:
        if not _has_area(mask):
            raise SurfaceError('the mask has no area')
        surface = _fit_around(mask, points, occupied, camera, surface_config, config)
        rim = Rim.from_mask(mask, camera, surface)
    except SurfaceError as error:
        status = Status.CUT_BY_BORDER if mask.touches_border else Status.NO_POINTS
        return Measurement.unknown(status, str(error))
    normal = surface.normal_at(rim.position[None])[0]
    distance = float(np.linalg.norm(rim.position))
    cosine = abs(float(normal @ rim.position)) / distance
    elevation_std = surface.elevation_std(*rim.centre)
    bias_m = assume_range_bias(surface.range_noise_m, config.range_bias_m)
    fit_distance_std = elevation_std / cosine
    shared_distance_std = math.hypot(bias_m, config.distance_std_m, extrinsic.translation_m)
    distance_std = math.hypot(fit_distance_std, shared_distance_std)
    placed = Measurement(
        area_status=Status.CUT_BY_BORDER,
        volume_status=Status.CUT_BY_BORDER,
        position=rim.position,
        normal=normal,
        outline=rim.outline,
        position_std_m=distance_std,
        range_noise_m=surface.range_noise_m,
        reason='the image cuts the airhole',
    )
    if mask.touches_border:
        return placed

    scale_std = 2.0 * fit_distance_std / distance
    scale_bias = 2.0 * math.hypot(shared_distance_std / distance, config.focal_std_ratio)
    boundary_std_px = config.boundary_std_px or find_boundary_std(mask, rim.perimeter_px)
    boundary_std = boundary_std_px * rim.perimeter_px / mask.area_px
    area_budget = Budget(
        scale=(scale_std * rim.area) ** 2,
        bias=(scale_bias * rim.area) ** 2,
        boundary=(boundary_std * rim.area) ** 2,
    )
    major_axis_m, minor_axis_m = rim.axes
    sized = replace(
        placed,
        area_status=Status.MEASURED,
        area_m2=rim.area,
        area_std_m2=area_budget.std,
        area_budget=area_budget,
        area_systematic_std_m2=area_budget.systematic_std,
        equivalent_diameter_m=2.0 * math.sqrt(rim.area / math.pi),
        major_axis_m=major_axis_m,
        minor_axis_m=minor_axis_m,
        reason='',
    )

    opening = _make_opening(rim, surface)
    readings = _find_readings(mask, points, surface, rim, opening)
    sized = replace(sized, point_count=len(readings))
    if len(readings) == 0:
        return replace(sized, volume_status=Status.NO_POINTS, reason='no range point inside the rim')
    surface_std = math.hypot(elevation_std, surface.patch_std_m)
    undamaged_std = find_undamaged_std(readings.std, len(readings), surface_std, bias_m)
    mean_depth = _find_robust_mean(readings.depths)
    limit = config.detection_factor * undamaged_std
    if mean_depth < limit:
        return replace(
            sized,
            volume_status=Status.BELOW_DETECTION_LIMIT,
            volume_upper_bound_m3=rim.area * (max(mean_depth, 0.0) + UPPER_95 * undamaged_std),
            reason=f'mean depth {mean_depth * 1e3:.2f} mm is below the detection limit of {limit * 1e3:.2f} mm',
        )

    few = len(readings) < config.min_points
    diameter = 2.0 * opening.radius
    prior = Prior(
        depth_mean=config.prior_depth_ratio_mean * diameter,
        depth_std=config.prior_depth_ratio_std * diameter,
        shape_std=config.prior_shape_ratio_std,
    )
    cavity = fit_cavity(opening, readings, prior, use_depth_prior=few)
    volume, depth = cavity.volume, cavity.depth_max
    at_rim = readings.depths[opening.relative_radius(readings.places) > _RIM_ZONE]
    rim_depth = max(float(at_rim.mean()), 0.0) if len(at_rim) else mean_depth
    volume_budget = Budget(
        noise=volume.noise_variance,
        surface=(volume.common_response * elevation_std) ** 2,
        scale=(scale_std * volume.mean) ** 2,
        shape=volume.shape_variance,
        patch=(volume.common_response * surface.patch_std_m) ** 2,
        bias=(volume.common_response * bias_m) ** 2 + (scale_bias * volume.mean) ** 2,
        boundary=(boundary_std * rim.area * rim_depth) ** 2,
        # Shifted against the mask, the readings leave a crescent of sound wall inside it, one diameter long.
        calibration=(extrinsic.shift_m(distance) * diameter * rim_depth) ** 2,
    )
    depth_budget = Budget(
        noise=depth.noise_variance,
        surface=(depth.common_response * elevation_std) ** 2,
        shape=depth.shape_variance,
        patch=(depth.common_response * surface.patch_std_m) ** 2,
        bias=(depth.common_response * bias_m) ** 2,
    )
    if few and volume.std > _MAX_PRIOR_SHARE * cavity.volume_prior_std:
        return replace(
            sized,
            volume_status=Status.BELOW_DETECTION_LIMIT,
            volume_upper_bound_m3=volume.mean + UPPER_95 * volume_budget.std,
            reason=f'{len(readings)} range points inside the rim do not decide its depth',
        )
    guessed = few or volume.shape_variance > (_MAX_SHAPE_SHARE * volume.mean) ** 2
    guessed = guessed or cavity.unseen_share > _MAX_UNSEEN_SHARE
    return replace(
        sized,
        volume_status=Status.SHAPE_PRIOR if guessed else Status.MEASURED,
        depth_max_m=depth.mean,
        depth_max_std_m=depth_budget.std,
        depth_max_systematic_std_m=depth_budget.systematic_std,
        depth_budget=depth_budget,
        volume_budget=volume_budget,
        volume_m3=volume.mean,
        volume_std_m3=volume_budget.std,
        volume_systematic_std_m3=volume_budget.systematic_std,
        volume_upper_bound_m3=volume.mean + UPPER_95 * volume_budget.std,
        reason='part of the depth comes from the shape prior' if guessed else '',
    )


def _fit_around(
    mask: InstanceMask,
    points: _PointMap,
    occupied: NDArray[np.bool_],
    camera: Camera,
    config: SurfaceConfig,
    measurement_config: MeasurementConfig,
) -> Surface:
    """The surface through the ring around the rim, a ring as wide as it takes."""
    coverage = mask.coverage.astype(np.float64)
    column = coverage.sum(axis=0) @ np.arange(coverage.shape[1]) / coverage.sum()
    row = coverage.sum(axis=1) @ np.arange(coverage.shape[0]) / coverage.sum()
    sight = camera.rays(np.array([[mask.left + column, mask.top + row]]))[0]
    if not np.isfinite(sight).all():
        raise SurfaceError('the lens model has no rays at the airhole')
    gap, base_width = _ring_px(mask, config)
    width = base_width
    angle = mask.equivalent_diameter_px / math.sqrt(camera.fx * camera.fy)
    fitted: Surface | None = None
    problem = SurfaceError('no range point around the rim')
    whole = False
    while not whole:
        distance, left, top = _distance_outside(mask, gap + width)
        box = (left, top, distance.shape[1], distance.shape[0])
        whole = left <= 0 and top <= 0 and left + box[2] >= camera.width and top + box[3] >= camera.height
        near = points.find(*box)
        columns, rows = points.columns[near], points.rows[near]
        outside = distance[rows - top, columns - left]
        ring = near[(outside >= gap) & (outside <= gap + width) & ~occupied[rows, columns]]
        ring = ring[:: len(ring) // config.max_points + 1]
        grown = width / base_width
        width *= _RING_GROWTH
        if len(ring) < config.min_points:
            if len(ring):
                problem = SurfaceError(f'only {len(ring)} range points around the rim')
            continue
        try:
            fitted = fit_surface(
                points.points[ring],
                sight,
                patch_angle_rad=angle,
                curvature_significance=config.curvature_significance,
                range_noise_m=measurement_config.range_noise_m or None,
            )
        except SurfaceError as error:
            problem = error
            continue
        distance_m = float(np.linalg.norm(fitted.origin))
        std = fitted.elevation_std(0.0, 0.0)
        near_enough = std < _ELEVATION_TARGET * angle * distance_m or grown >= _LOCAL_GROWTH
        if near_enough and std < _DISTANCE_TARGET * distance_m:
            break
    if fitted is None:
        raise problem
    return fitted


def _make_opening(rim: Rim, surface: Surface) -> Opening:
    outline = surface.to_local(rim.outline)[:, :2]
    to_circle = rim.to_circle.T
    return Opening.from_pixels(
        (rim.pixel_xy - rim.centre) @ to_circle, rim.pixel_areas, (outline - rim.centre) @ to_circle
    )


def _find_readings(mask: InstanceMask, points: _PointMap, surface: Surface, rim: Rim, opening: Opening) -> Readings:
    """The points seen through the opening, as depths below the surface.

    A ray that passes the opening shows the cavity, wherever its end lies; noise along the ray does not move it in or
    out of the rim. Rays at the rim itself are left out: there a reading mixes two depths, and in an oblique view the
    depth jumps.
    """
    near = points.find(*mask.roi)
    places_px = points.pixels[near] - (mask.left, mask.top)
    coverage = ndimage.map_coordinates(mask.coverage, places_px[:, ::-1].T, order=1, mode='nearest')
    inside = points.points[near[coverage >= _INSIDE * find_rim_level(mask)]]
    x, y, z = surface.to_local(inside).T
    entries = surface.to_local(surface.intersect(inside))[:, :2]
    directions = inside @ surface.axes.T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slope_x, slope_y = surface.slopes(entries[:, 0], entries[:, 1])
    cosines = slope_x * directions[:, 0] + slope_y * directions[:, 1] - directions[:, 2]
    to_circle = rim.to_circle.T
    readings = Readings(
        entries=(entries - rim.centre) @ to_circle,
        drifts=directions[:, :2] / cosines[:, None] @ to_circle,
        depths=surface.elevation(x, y) - z,
        std=surface.range_noise_m * float(cosines.mean()) if len(cosines) else math.nan,
    )
    play = 3.0 * readings.std / opening.radius * np.hypot(readings.drifts[:, 0], readings.drifts[:, 1])
    return readings.select(opening.relative_radius(readings.places) < _UNDERCUT + play)


def _find_robust_mean(values: Array) -> float:
    """Mean without gross outliers."""
    offsets = values - np.median(values)
    spread = _MAD_TO_STD * float(np.median(np.abs(offsets)))
    return float(values[np.abs(offsets) <= _OUTLIER * spread].mean())
