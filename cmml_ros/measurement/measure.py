"""From masks and points to measured airholes, one frame at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmml_ros.config import MeasurementConfig, SurfaceConfig
from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.geometry.compiled import as_compiled, compiled
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface, fit_surface
from cmml_ros.measurement.defect import Measurement, Status
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.rim import Rim, SeenRim, find_boundary_std, outline_in_image, see_rims
from cmml_ros.measurement.shape_prior import EllipsoidCap, Opening, Prior, Readings, fit_cavity
from cmml_ros.measurement.uncertainty import (
    FOOTPRINT_DOUBT,
    UPPER_95,
    Budget,
    ExtrinsicStd,
    Footprint,
    assume_range_bias,
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
# Nor while more than this share of the opening has no reading nearby: a hidden floor may lie much deeper.
_MAX_UNSEEN_SHARE = 0.2
# Readings that need the prior inform when they bring the deviation of the volume below this share of the prior's.
_MAX_PRIOR_SHARE = 0.5
# Coverage from which a ray passes the opening and not its edge, over that of the rim.
_INSIDE = 1.5
# What moves along both axes, and like a chess knight, cost in `_chamfer`; one straight on costs 1.
_DIAGONAL_MOVE, _KNIGHT_MOVE = 1.4, 2.1969
# Direction of the middle of an octant.
_OCTANT_COS, _OCTANT_SIN = math.cos(math.pi / 8.0), math.sin(math.pi / 8.0)
# Points are sorted by tiles of so many pixels a side.
_TILE_PX = 16


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
    points = _PointMap.from_cloud(projected, camera)
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
        ProjectedCloud(points, pixels),
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


@dataclass(frozen=True, eq=False)
class _PointMap:
    """The usable points, tile by tile along rows of tiles, and in a tile in the order of the cloud.

    points: (M, 3) camera frame, and pixels: (M, 2) where they project to, all of the cloud. numbers: (N,) which of
    these are usable. starts: (rows, columns + 1) where a tile begins.
    """

    points: Array
    pixels: Array
    numbers: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def from_cloud(cls, projected: ProjectedCloud, camera: Camera) -> _PointMap:
        points, pixels = as_compiled(projected.points_camera), as_compiled(projected.pixels)
        return cls(points, pixels, *_sort_by_tile(points, pixels, camera.width, camera.height))


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
        edge = _mark_near(occupied, rim.coverage, rim.level, rim.left, rim.top, gap_px)
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
        points: _PointMap,
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
    def look(cls, site: _Site, points: _PointMap) -> _Inside:
        """From the points that are seen through the opening."""
        seen, surface, rim = site
        opening = Opening.from_pixels(rim.pixels, rim.outline_xy, rim.centre, rim.to_circle)
        entries, drifts, depths, mean_cosine = surface.enter(_select_seen(seen, points))
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
    boundary_std_px = config.boundary_std_px or find_boundary_std(
        seen.softness_px, seen.perimeter_px, mask.boundary_std_px
    )
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
    cavity = fit_cavity(opening, readings, prior, use_depth_prior=undecided)
    volume, depth = cavity.volume, cavity.depth_max
    rim_depth = mean_depth if math.isnan(readings.rim_mean) else max(readings.rim_mean, 0.0)
    perimeter = seen.perimeter_px * math.sqrt(rim.area / seen.area_px)
    spacing = math.sqrt(rim.area / readings.number)
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
    guessed = guessed or cavity.unseen_share > _MAX_UNSEEN_SHARE
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
    points: _PointMap,
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
        found = _select_ring(
            points.points,
            points.pixels,
            points.numbers,
            points.starts,
            (left, top, right - left, bottom - top),
            occupied,
            ring.edge,
            reach,
            config.max_points,
        )
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


def _select_seen(rim: SeenRim, points: _PointMap) -> Array:
    """The points seen through the opening, (N, 3).

    A ray that passes the opening shows the cavity, wherever its end lies; noise along the ray does not move it in or
    out of the rim. Rays at the rim itself are left out: there a reading mixes two depths, and in an oblique view the
    depth jumps.
    """
    return _select_inside(
        points.points,
        points.pixels,
        points.numbers,
        points.starts,
        rim.coverage,
        rim.left,
        rim.top,
        _INSIDE * rim.level,
    )


@compiled
def _sort_by_tile(points: Array, pixels: Array, width: int, height: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """`numbers` and `starts` of a `_PointMap`."""
    columns, rows = width // _TILE_PX + 1, height // _TILE_PX + 1
    tiles = np.empty(len(points), np.int32)
    counts = np.zeros(columns * rows + 1, np.int64)
    for i in range(len(points)):
        u, v = pixels[i]
        tiles[i] = -1
        if u >= -0.5 and u < width - 0.5 and v >= -0.5 and v < height - 0.5:
            x, y, z = points[i]
            if z > 0.0 and math.isfinite(x + y + z):
                tiles[i] = int(v + 0.5) // _TILE_PX * columns + int(u + 0.5) // _TILE_PX
                counts[tiles[i] + 1] += 1
    starts = np.empty((rows, columns + 1), np.int64)
    for tile in range(columns * rows):
        counts[tile + 1] += counts[tile]
    for row in range(rows):
        for column in range(columns + 1):
            starts[row, column] = counts[row * columns + column]
    numbers = np.empty(counts[-1], np.int32)
    for i in range(len(points)):
        if tiles[i] >= 0:
            numbers[counts[tiles[i]]] = i
            counts[tiles[i]] += 1
    return numbers, starts


@compiled
def _chamfer(x: float, y: float) -> float:
    """Distance over x columns and y rows, within 2 % of Euclid's (Borgefors 1986): OpenCV's DIST_MASK_5."""
    far, near = max(abs(x), abs(y)), min(abs(x), abs(y))
    straight = far - 2.0 * near + _KNIGHT_MOVE * near
    return straight if far >= 2.0 * near else _KNIGHT_MOVE * (far - near) + _DIAGONAL_MOVE * (2.0 * near - far)


@compiled
def _find_edge(coverage: NDArray[np.float32], level: float, left: int, top: int) -> NDArray[np.int64]:
    """Columns and rows, (2, n), of the pixels of a mask that have a neighbour outside it."""
    height, width = coverage.shape
    inside, across = np.zeros((height + 2, width + 2), np.uint8), np.empty((height + 2, width), np.uint8)
    for row in range(height):
        for column in range(width):
            inside[row + 1, column + 1] = coverage[row, column] >= level
    for row in range(height + 2):
        for column in range(width):
            across[row, column] = inside[row, column] & inside[row, column + 1] & inside[row, column + 2]
    edge = np.empty((2, coverage.size + 1), np.int64)
    count = 0
    for row in range(height):
        for column in range(width):
            deep = across[row, column] & across[row + 1, column] & across[row + 2, column]
            edge[0, count], edge[1, count] = left + column, top + row
            count += inside[row + 1, column + 1] > deep
    return edge[:, :count].copy()


@compiled
def _mark_near(
    occupied: NDArray[np.bool_],
    coverage: NDArray[np.float32],
    level: float,
    left: int,
    top: int,
    reach_px: float,
) -> NDArray[np.int64]:
    """Marks the pixels of the image nearer than `reach_px` to a mask, itself included; returns its edge."""
    for row in range(max(0, -top), min(coverage.shape[0], occupied.shape[0] - top)):
        for column in range(max(0, -left), min(coverage.shape[1], occupied.shape[1] - left)):
            if coverage[row, column] >= level:
                occupied[top + row, left + column] = True
    edge, rows = _find_edge(coverage, level, left, top), math.ceil(reach_px)
    halves = np.full(rows + 1, -1)  # of the rows of what lies nearer than that to one pixel
    for row in range(rows + 1):
        while _chamfer(halves[row] + 1.0, row) < reach_px:
            halves[row] += 1
    # Each row of what is near a pixel begins with 1 and ends before -1; sums from the left are above 0 within any.
    height, width = coverage.shape
    turns = np.zeros((height + 2 * rows, width + 2 * rows + 1), np.int32)
    for i in range(edge.shape[1]):
        u, v = edge[0, i] - left + rows, edge[1, i] - top + rows
        for row in range(-rows, rows + 1):
            half = halves[abs(row)]
            if half >= 0:
                turns[v + row, u - half] += 1
                turns[v + row, u + half + 1] -= 1
    first = left - rows
    for row in range(max(rows - top, 0), min(len(turns), occupied.shape[0] + rows - top)):
        begun, marked = 0, occupied[top - rows + row]
        for column in range(min(turns.shape[1], occupied.shape[1] - first)):
            begun += turns[row, column]
            if begun > 0 and first + column >= 0:
                marked[first + column] = True
    return edge


@compiled
def _find_near(starts: NDArray[np.int64], left: int, top: int, width: int, height: int) -> NDArray[np.int64]:
    """Numbers, (n, 2), of the first point of a row of tiles that a box of pixels touches and of that after its last."""
    rows, columns = starts.shape
    first, last = max(left, 0) // _TILE_PX, min(max(left + width - 1, 0) // _TILE_PX, columns - 2)
    low, high = max(top, 0) // _TILE_PX, min(max(top + height - 1, 0) // _TILE_PX, rows - 1)
    near = np.zeros((max(high - low + 1, 0), 2), np.int64)
    for row in range(len(near)):
        near[row, 0], near[row, 1] = (
            starts[low + row, first],
            max(starts[low + row, last + 1], starts[low + row, first]),
        )
    return near


@compiled
def _octant(x: int, y: int) -> tuple[int, int, int]:
    """Which eighth of the plane a direction lies in."""
    return int(x > 0), int(y > 0), int(abs(y) > abs(x))


@compiled
def _is_near(u: int, v: int, edge: NDArray[np.int64], reach_px: float) -> bool:
    """Whether a pixel is up to `reach_px` from one of an edge."""
    near = 0
    for i in range(edge.shape[1]):  # all of them: without a way out the loop takes several at a time
        near += _chamfer(u - edge[0, i], v - edge[1, i]) <= reach_px
    return near > 0


@compiled
def _select_ring(
    points: Array,
    pixels: Array,
    numbers: NDArray[np.int32],
    starts: NDArray[np.int64],
    box: tuple[int, int, int, int],
    occupied: NDArray[np.bool_],
    edge: NDArray[np.int64],
    reach_px: float,
    max_points: int,
) -> Array:
    """Points up to `reach_px` from a mask with that edge, on pixels that no mask occupies, thinned to `max_points`.

    box: left, top, width and height of what lies so near.
    """
    left, top, width, height = box
    near = _find_near(starts, left, top, width, height)
    found = np.empty((near[:, 1] - near[:, 0]).sum() + 1, np.int64)
    count = 0
    middle_u, middle_v = left + width // 2, top + height // 2
    # Farther from the middle than `beyond` is too far from the edge, too; and of each octant the pixel of the edge that
    # lies farthest out, near which most of what is looked for there is.
    beyond, farthest = 0.0, np.zeros((2, 2, 2))
    outer = np.zeros((2, 2, 2), np.int64)
    for i in range(edge.shape[1]):
        u, v = edge[0, i] - middle_u, edge[1, i] - middle_v
        beyond = max(beyond, reach_px + _chamfer(u, v))
        octant = _octant(u, v)
        out = _OCTANT_COS * max(abs(u), abs(v)) + _OCTANT_SIN * min(abs(u), abs(v))
        if out > farthest[octant]:
            farthest[octant], outer[octant] = out, i
    for row in range(len(near)):
        for at in range(near[row, 0], near[row, 1]):
            number = numbers[at]
            u, v = int(pixels[number, 0] + 0.5), int(pixels[number, 1] + 0.5)
            found[count] = number
            count += (_chamfer(u - middle_u, v - middle_v) <= beyond) & (not occupied[v, u])
    candidates, count = count, 0
    for i in range(candidates):
        number = found[i]
        u, v = int(pixels[number, 0] + 0.5), int(pixels[number, 1] + 0.5)
        first = outer[_octant(u - middle_u, v - middle_v)]
        if _chamfer(u - edge[0, first], v - edge[1, first]) <= reach_px or _is_near(u, v, edge, reach_px):
            found[count] = number
            count += 1
    return _take(points, found[:count][:: count // max_points + 1])


@compiled
def _take(points: Array, numbers: NDArray[np.int64]) -> Array:
    taken = np.empty((len(numbers), 3))
    for i in range(len(numbers)):
        for axis in range(3):
            taken[i, axis] = points[numbers[i], axis]
    return taken


@compiled
def _select_inside(
    points: Array,
    pixels: Array,
    numbers: NDArray[np.int32],
    starts: NDArray[np.int64],
    coverage: NDArray[np.float32],
    left: int,
    top: int,
    least: float,
) -> Array:
    """Points where the coverage, bilinear between the centres of its pixels, is at least that."""
    height, width = coverage.shape
    near = _find_near(starts, left, top, width, height)
    found = np.empty((near[:, 1] - near[:, 0]).sum(), np.int64)
    count = 0
    for row in range(len(near)):
        for at in range(near[row, 0], near[row, 1]):
            number = numbers[at]
            u, v = pixels[number, 0] - left, pixels[number, 1] - top
            if u >= -0.5 and u < width - 0.5 and v >= -0.5 and v < height - 0.5:
                u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
                column, below = int(u), int(v)
                right, bottom = min(column + 1, width - 1), min(below + 1, height - 1)
                share_u, share_v = u - column, v - below
                upper = coverage[below, column] * (1.0 - share_u) + coverage[below, right] * share_u
                lower = coverage[bottom, column] * (1.0 - share_u) + coverage[bottom, right] * share_u
                if upper * (1.0 - share_v) + lower * share_v >= least:
                    found[count] = number
                    count += 1
    return _take(points, found[:count][::1])
