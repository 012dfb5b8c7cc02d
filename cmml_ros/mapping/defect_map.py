"""The same airhole seen again: one entry per physical airhole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from cmml_ros.config import MapConfig, MeasurementConfig
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.closeup import Closeup
from cmml_ros.mapping.drift import DriftFilter
from cmml_ros.mapping.fusion import Columns, Fusion
from cmml_ros.mapping.views import FrameViews
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.shape_prior import MAX_UNSEEN_SHARE
from cmml_ros.measurement.uncertainty import UPPER_95

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
MakeCloseup = Callable[[Defect], Closeup]

_MIN_NORMAL_COSINE = math.cos(math.radians(45.0))  # beyond it lies another face of the structure
_LARGEST_SIZE_RATIO = 2.0  # between the diameters of two whole views of one airhole
_PARTIAL_COST = 0.25  # of a part that lies at the rim of the whole, over that of the gate
# An airhole should be seen again when it lies so far inside the picture, as steep and at least as large as before.
_BORDER_PX = 8.0
# Airholes that touch are drawn as one in some views and as several in others. Several they are when at least this share
# of the views tells them apart; together they have about the area of the one.
_APART_SHARE = 0.25
_JOINED_AREA_RATIOS = (0.6, 1.2)
# What lies within a whole one is one of its own when it is seen in at least this share of the views of that.
_PART_SHARE = 0.5
_SAME_SIZE = 0.95
# Frames whose camera, and what it looks at, lie within this share of the distance show the same of the surface.
_SAME_PLACE = 0.01
_VOLUME_KNOWN = (Status.MEASURED, Status.SHAPE_PRIOR)
_NOTHING = Measurement.unknown(Status.NO_POINTS, '')


@dataclass(frozen=True)
class MapEntry:
    """One physical airhole, fused from its observations.

    measurement: in `frame_id`, which is the map frame, or the camera frame of an airhole that could not be placed.
    confidence: mean over its observations, and over the views that should have shown it and did not, as zero.
    closeup: of the best view, where pictures were given.
    """

    defect_id: int
    class_id: int
    frame_id: str
    measurement: Measurement
    confidence: float
    observations: int
    first_stamp_ns: int
    last_stamp_ns: int
    misses: int = 0
    closeup: Closeup | None = None


@dataclass(frozen=True, eq=False)
class MapView:
    """From where one frame saw the surface, drift corrected."""

    stamp_ns: int
    T_map_camera: SE3
    camera: Camera


@dataclass(frozen=True, eq=False)
class MapSnapshot:
    """A map at one moment, which does not change any more.

    entries: by id. views: of the frames with a pose and a camera, one of those taken from about the same place.
    largest_correction_m: by how much the drift of the poses was corrected at most. first_stamp_ns, last_stamp_ns: of
    the frames with a pose and a camera, 0 without one.
    """

    map_frame: str
    entries: tuple[MapEntry, ...]
    views: tuple[MapView, ...]
    largest_correction_m: float
    first_stamp_ns: int = 0
    last_stamp_ns: int = 0

    @property
    def placed(self) -> tuple[MapEntry, ...]:
        """The entries in the map frame, each a physical airhole."""
        return tuple(entry for entry in self.entries if entry.frame_id == self.map_frame)


class DefectMap:
    """All airholes seen so far, each counted once, with ids from 1 in the order of their appearance.

    Two views are one airhole when their positions agree within `gate_factor` deviations (of both, of the pose and
    `gate_m`), their diameters within a factor of two and their normals within 45 degrees. In each frame the views are
    assigned one-to-one to what is known, at least total cost. Before, the frame's pose is corrected by the airholes
    seen again (`DriftFilter`). What depends on nothing but the order of frames is the same live and offline.
    """

    def __init__(self, config: MapConfig, map_frame: str = 'map', measurement: MeasurementConfig | None = None) -> None:
        """measurement: of the views, None for the defaults."""
        self._config = config
        self._measurement = MeasurementConfig() if measurement is None else measurement
        self._map_frame = map_frame
        self.clear()

    @property
    def entries(self) -> list[MapEntry]:
        """Every airhole, by id."""
        listed = np.flatnonzero(self._listed).tolist()
        self._make_entries([row for row in listed if self._entries[row] is None])
        return [entry for row in listed if (entry := self._entries[row]) is not None]

    @property
    def placed_ids(self) -> set[int]:
        """Ids of the airholes in the map frame."""
        return set((np.flatnonzero(self._listed & self._tracks['placed']) + 1).tolist())

    def snapshot(self) -> MapSnapshot:
        """The map as it is now, for a report; cheap for what has not changed since the previous call."""
        views = tuple(self._views.values())
        return MapSnapshot(self._map_frame, tuple(self.entries), views, self._largest_correction_m, *self._stamps_ns)

    def add(
        self,
        defects: Sequence[Defect],
        T_map_camera: SE3 | None,
        stamp_ns: int,
        frame_id: str,
        camera: Camera | None = None,
        make_closeup: MakeCloseup | None = None,
    ) -> list[int]:
        """Ids of `defects`, all of one frame and measured in its camera frame `frame_id`.

        Without T_map_camera, or without a position on the surface, an airhole cannot be recognised again: it becomes
        an entry of its own, in `frame_id`. camera: tells which known airholes the frame should have shown; without it
        none loses confidence. make_closeup: called for a view that is the best one of its airhole so far.
        """
        views = FrameViews(defects)
        placed = np.full(len(views), T_map_camera is not None) & np.isfinite(views.positions).all(axis=1)
        T_corrected = None
        rows = np.full(len(views), -1)
        if T_map_camera is not None:
            T_corrected = self._correct_pose(views, np.flatnonzero(placed), T_map_camera)
            views.move(T_corrected)
            rows = self._associate(views, np.flatnonzero(placed))
        new = np.flatnonzero(rows < 0)
        rows[new] = self._begin(len(new))
        tracks = self._tracks
        tracks['placed'][rows[new]] = placed[new]
        tracks['class_id'][rows[new]] = views.class_ids[new]
        tracks['first_stamp_ns'][rows[new]] = stamp_ns
        for row in rows[new].tolist():
            self._frame_ids[row] = self._map_frame if tracks['placed'][row] else frame_id
        self._fold(views, rows, defects, T_corrected, stamp_ns, make_closeup)
        if T_corrected is not None:
            self._absorb_parts(rows[placed])
            self._read_joined(rows[placed])
            if camera is not None:
                self._keep_view(MapView(stamp_ns, T_corrected, camera), views.positions[placed])
                self._expect(camera, T_corrected, rows[placed])
        return [int(row) + 1 for row in rows]

    def clear(self) -> None:
        """Forget everything; ids start from 1 again."""
        self._drift = DriftFilter(self._config)
        self._largest_correction_m = 0.0
        self._views: dict[tuple[Camera, int, bytes], MapView] = {}
        self._distance_exponent = 0
        self._stamps_ns = 0, 0
        # The view with the best area and its pose, and the one with the best volume, of each airhole.
        self._sized: list[tuple[Measurement, SE3 | None]] = []
        self._filled: list[Measurement] = []
        self._frame_ids: list[str] = []
        self._readings: list[CavityReadings | None] = []
        self._closeups: list[Closeup | None] = []
        self._entries: list[MapEntry | None] = []
        self._tracks = Columns(
            alive=True,
            misread=False,
            placed=False,
            whole=False,
            class_id=0,
            position=np.full(3, np.nan),
            normal=np.full(3, np.nan),
            covariance=np.full((3, 3), np.nan),
            radius=0.0,
            reach=0.0,
            diameter=math.nan,
            smallest_px=math.inf,
            confidence=0.0,
            observations=0,
            misses=0,
            first_stamp_ns=0,
            last_stamp_ns=0,
        )
        self._place = Fusion(6)
        self._area, self._depth, self._volume = (Fusion(width, proportional=True) for width in (3, 1, 2))
        # What deviates in a volume by its rim, and beside that and what its readings do or leave undone.
        self._rim, self._beside = Fusion(1, proportional=True), Fusion(1, proportional=True)

    @property
    def _listed(self) -> NDArray[np.bool_]:
        """Which rows are airholes as far as is known: neither absorbed nor another reading of others."""
        return np.asarray(self._tracks['alive'] & ~self._tracks['misread'])

    def _begin(self, count: int) -> Integers:
        """Rows of `count` airholes that are new."""
        first = len(self._tracks)
        for rows in (self._tracks, self._place, self._area, self._depth, self._volume, self._rim, self._beside):
            rows.extend(count)
        self._sized += [(_NOTHING, None)] * count
        self._filled += [_NOTHING] * count
        self._frame_ids += [''] * count
        self._readings += [None] * count
        self._closeups += [None] * count
        self._entries += [None] * count
        return np.arange(first, first + count)

    def _correct_pose(self, views: FrameViews, placed: Integers, T_map_camera: SE3) -> SE3:
        """Where the camera really was, in the map."""
        drift = self._drift
        drift.predict(T_map_camera)
        views.move(drift.pose)
        whole = placed[views.whole[placed]]
        pairs, tracks = self._find_pairs(views, whole)
        known_whole = self._tracks['whole'][tracks]
        pairs, tracks = pairs[known_whole], tracks[known_whole]
        covariances = self._covariances(views, pairs, tracks)
        gate = covariances + drift.position_covariances(views.positions[pairs])
        offsets = self._tracks['position'][tracks] - views.positions[pairs]
        near = _squared(offsets, gate) + _size_cost(views.diameters[pairs], self._tracks['diameter'][tracks]) ** 2 <= (
            self._config.gate_factor**2
        )
        pairs, tracks, covariances = pairs[near], tracks[near], covariances[near]
        drift.correct(views.positions[pairs], self._tracks['position'][tracks], covariances, pairs)
        correction_m = float(np.linalg.norm(drift.pose.translation - T_map_camera.translation))
        self._largest_correction_m = max(self._largest_correction_m, correction_m)
        return drift.pose

    def _associate(self, views: FrameViews, placed: Integers) -> Integers:
        """Row of the known airhole that each view continues, -1 for none."""
        rows = np.full(len(views), -1)
        pairs, tracks = self._find_pairs(views, placed)
        if not len(pairs):
            return rows
        known = self._tracks
        covariances = self._covariances(views, pairs, tracks)
        covariances += self._drift.position_covariances(views.positions[pairs])
        offsets = known['position'][tracks] - views.positions[pairs]
        both_whole = views.whole[pairs] & known['whole'][tracks]
        sizes = np.where(both_whole, _size_cost(views.diameters[pairs], known['diameter'][tracks]), 0.0)
        # The centre of what the border left lies anywhere within the whole airhole.
        radii = np.where(both_whole, 0.0, np.maximum(views.radii[pairs], known['radius'][tracks]))
        distances = np.linalg.norm(offsets, axis=1)
        with np.errstate(divide='ignore', invalid='ignore'):
            beyond = np.where(distances > radii, 1.0 - radii / distances, 0.0)
            partial = np.where(radii > 0.0, np.minimum(distances / radii, 1.0) ** 2, 0.0)
        costs = _squared(offsets * beyond[:, None], covariances) / self._config.gate_factor**2
        costs += sizes**2 + _PARTIAL_COST * partial
        possible = costs <= 1.0
        pairs, tracks, costs = pairs[possible], tracks[possible], costs[possible]
        # Columns: the known airholes within reach, then one "not seen before" per view, as dear as a match at the gate.
        reached, columns = np.unique(tracks, return_inverse=True)
        candidates, lines = np.unique(pairs, return_inverse=True)
        matrix = np.full((len(candidates), len(reached) + len(candidates)), np.inf)
        matrix[np.arange(len(candidates)), len(reached) + np.arange(len(candidates))] = 1.0
        matrix[lines, columns] = costs
        chosen_lines, chosen_columns = linear_sum_assignment(matrix)
        matched = chosen_columns < len(reached)
        rows[candidates[chosen_lines[matched]]] = reached[chosen_columns[matched]]
        return rows

    def _find_pairs(self, views: FrameViews, chosen: Integers) -> tuple[Integers, Integers]:
        """Views, of those `chosen`, and known airholes that are near enough to be compared."""
        known, nothing = self._tracks, np.empty(0, np.int64)
        if not len(chosen) or not len(known):
            return nothing, nothing
        positions = views.positions[chosen]
        spread = np.einsum('kii->k', views.covariances[chosen] + self._drift.position_covariances(positions))
        reach_m = self._config.gate_factor * np.sqrt(spread + self._config.gate_m**2) + views.radii[chosen]
        # All airholes in the box around the frame: three comparisons each, far less than an index over all would cost.
        low, high = (positions - reach_m[:, None]).min(axis=0), (positions + reach_m[:, None]).max(axis=0)
        usable = known['alive'] & known['placed']
        margin = float(known['reach'][usable].max(initial=0.0))
        inside = ((known['position'] >= low - margin) & (known['position'] <= high + margin)).all(axis=1)
        near = np.flatnonzero(usable & inside)
        if not len(near):
            return nothing, nothing
        tree = cKDTree(known['position'][near])
        found = tree.query_ball_point(positions, reach_m + known['reach'][near].max(), return_sorted=True)
        pairs = np.repeat(chosen, [len(rows) for rows in found])
        tracks = near[np.concatenate([np.asarray(rows, np.int64) for rows in found])]
        facing = np.einsum('ki,ki->k', views.normals[pairs], known['normal'][tracks]) >= _MIN_NORMAL_COSINE
        same = facing & (views.class_ids[pairs] == known['class_id'][tracks])
        return pairs[same], tracks[same]

    def _covariances(self, views: FrameViews, pairs: Integers, tracks: Integers) -> Array:
        """Of the difference between view and known airhole, without the pose's, (K, 3, 3) m2."""
        own = views.covariances[pairs] + self._tracks['covariance'][tracks]
        return np.asarray(own + self._config.gate_m**2 * np.eye(3))

    def _fold(
        self,
        views: FrameViews,
        rows: Integers,
        defects: Sequence[Defect],
        T_corrected: SE3 | None,
        stamp_ns: int,
        make_closeup: MakeCloseup | None,
    ) -> None:
        """Add each view to its airhole."""
        tracks = self._tracks
        placing = self._place.add(
            rows,
            views.area_statuses,
            np.hstack([views.positions, views.normals]),
            views.position_stds,
            views.position_stds,
        )
        sizing = self._area.add(rows, views.area_statuses, views.areas, views.area_stds, views.area_systematic_stds)
        self._depth.add(rows, views.volume_statuses, views.depths, views.depth_stds, views.depth_systematic_stds)
        filling = self._volume.add(
            rows,
            views.volume_statuses,
            views.volumes,
            views.volume_stds,
            views.volume_systematic_stds,
            views.point_counts,
        )
        for fusion, stds, systematic_stds in (
            (self._rim, views.rim_stds, views.rim_systematic_stds),
            (self._beside, views.beside_stds, views.beside_systematic_stds),
        ):
            fusion.add(
                rows,
                views.volume_statuses,
                views.volumes[:, :1],
                stds,
                systematic_stds,
                weighed_by=views.volume_stds,
            )
        for row, defect in zip(rows.tolist(), defects, strict=True):
            readings = defect.measurement.readings
            if readings is not None:
                readings = readings if T_corrected is None else readings.rotated(T_corrected.rotation)
                known = self._readings[row]
                self._readings[row] = readings if known is None else known.joined(readings)
        for index in np.flatnonzero(sizing).tolist():
            self._sized[rows[index]] = defects[index].measurement, T_corrected
        for index in np.flatnonzero(filling).tolist():
            self._filled[rows[index]] = defects[index].measurement
        tracks['covariance'][rows[placing]] = views.covariances[placing]
        tracks['radius'][rows[sizing]] = views.radii[sizing]
        spread = np.sqrt(np.einsum('kii->k', tracks['covariance'][rows]))
        tracks['reach'][rows] = tracks['radius'][rows] + self._config.gate_factor * spread
        places = self._place.means(rows)
        tracks['position'][rows] = places[:, :3]
        lengths = np.linalg.norm(places[:, 3:], axis=1, keepdims=True)
        tracks['normal'][rows] = places[:, 3:] / lengths
        tracks['diameter'][rows] = 2.0 * np.sqrt(self._area.means(rows)[:, 0] / math.pi)
        tracks['whole'][rows] = self._area.statuses(rows) != Status.CUT_BY_BORDER
        tracks['confidence'][rows] += views.confidences
        tracks['observations'][rows] += 1
        tracks['last_stamp_ns'][rows] = np.maximum(tracks['last_stamp_ns'][rows], stamp_ns)
        tracks['first_stamp_ns'][rows] = np.minimum(tracks['first_stamp_ns'][rows], stamp_ns)
        for row in rows.tolist():
            self._entries[row] = None
        if make_closeup is not None:
            for index in np.flatnonzero(sizing).tolist():
                self._closeups[rows[index]] = make_closeup(defects[index])

    def _absorb_parts(self, rows: Integers) -> None:
        """Drop airholes of which only a part was seen and that a whole one now covers."""
        tracks = self._tracks
        parts = np.flatnonzero(tracks['alive'] & tracks['placed'] & ~tracks['whole'])
        parts = parts[~np.isin(parts, rows)]
        whole = rows[tracks['whole'][rows]]
        if not len(parts) or not len(whole):
            return
        offsets = tracks['position'][parts][:, None] - tracks['position'][whole][None]
        covered = (np.linalg.norm(offsets, axis=2) < tracks['radius'][whole]).any(axis=1)
        tracks['alive'][parts[covered]] = False

    def _read_joined(self, rows: Integers) -> None:
        """Decide whether what some views show as one airhole and others as several is one or several.

        Both readings go on to be followed, so that more views may change the decision.
        """
        tracks = self._tracks
        usable = np.flatnonzero(tracks['alive'] & tracks['placed'] & tracks['whole'])
        touched = rows[tracks['whole'][rows]]
        if not len(touched):
            return
        reach = float(tracks['radius'][usable].max())
        places = tracks['position'][touched]
        inside = (tracks['position'][usable] >= places.min(axis=0) - 2.0 * reach) & (
            tracks['position'][usable] <= places.max(axis=0) + 2.0 * reach
        )
        near = usable[inside.all(axis=1)]
        pairs = cKDTree(tracks['position'][near]).query_pairs(reach, output_type='ndarray')
        larger, smaller = near[np.concatenate([pairs, pairs[:, ::-1]])].T
        distances = np.linalg.norm(tracks['position'][larger] - tracks['position'][smaller], axis=1)
        within = (distances < tracks['radius'][larger]) & (tracks['diameter'][smaller] < tracks['diameter'][larger])
        larger, smaller = larger[within], smaller[within]
        for one in np.unique(larger[np.isin(larger, touched) | np.isin(smaller, touched)]).tolist():
            several = smaller[larger == one]
            ratio = float(np.sum(tracks['diameter'][several] ** 2) / tracks['diameter'][one] ** 2)
            if len(several) < 2 or not _JOINED_AREA_RATIOS[0] <= ratio <= _JOINED_AREA_RATIOS[1]:
                # Parts alone, while the rest was taken for the whole: both cannot be.
                offsets = tracks['position'][several] - tracks['position'][one]
                parts = several[np.linalg.norm(offsets, axis=1) < 0.5 * tracks['diameter'][one]]
                tracks['misread'][parts] = tracks['observations'][parts] < _PART_SHARE * tracks['observations'][one]
                continue
            apart = tracks['observations'][several].min() >= _APART_SHARE * tracks['observations'][one]
            tracks['misread'][one], tracks['misread'][several] = apart, not apart

    def _keep_view(self, view: MapView, positions: Array) -> None:
        """Remember what a frame showed, unless one from about the same place did; positions: of its airholes.

        So a robot that stands still, or comes back, does not fill the memory. Distances go by powers of two, so that
        places can be compared.
        """
        first_ns, last_ns = self._stamps_ns if self._views else (view.stamp_ns, view.stamp_ns)
        self._stamps_ns = min(first_ns, view.stamp_ns), max(last_ns, view.stamp_ns)
        if len(positions):
            distance_m = float(np.median(view.T_map_camera.inverse().apply(positions)[:, 2]))
            self._distance_exponent = round(math.log2(max(distance_m, 1e-3)))
        distance_m = 2.0**self._distance_exponent
        origin, (right, _, forward) = view.T_map_camera.translation, distance_m * view.T_map_camera.rotation.T
        marks = np.concatenate([origin, origin + forward, origin + forward + right])
        place = np.rint(marks / (_SAME_PLACE * distance_m)).astype(np.int64).tobytes()
        self._views.setdefault((view.camera, self._distance_exponent, place), view)

    def _expect(self, camera: Camera, T_map_camera: SE3, seen_rows: Integers) -> None:
        """Count a miss for each airhole that this frame should show and does not."""
        tracks = self._tracks
        rows = np.flatnonzero(self._listed & tracks['placed'] & tracks['whole'])
        T_camera_map = T_map_camera.inverse()
        positions = T_camera_map.apply(tracks['position'][rows])
        pixels, shown = camera.project(positions)
        rows, positions, pixels = rows[shown], positions[shown], pixels[shown]
        normals = tracks['normal'][rows] @ T_camera_map.rotation.T
        cosines = -np.einsum('ki,ki->k', positions, normals) / np.linalg.norm(positions, axis=1)
        px_per_m = math.sqrt(camera.fx * camera.fy) / positions[:, 2]
        sizes_px = tracks['diameter'][rows] * px_per_m * cosines
        borders_px = np.minimum(pixels, [camera.width - 1.0, camera.height - 1.0] - pixels).min(axis=1)
        inside = borders_px > tracks['radius'][rows] * px_per_m + _BORDER_PX
        seen = np.isin(rows, seen_rows)
        tracks['smallest_px'][rows[seen]] = np.fmin(tracks['smallest_px'][rows[seen]], sizes_px[seen])
        large = sizes_px >= _SAME_SIZE * tracks['smallest_px'][rows]
        missed = rows[inside & (cosines > 0.0) & large & ~seen]
        tracks['misses'][missed] += 1
        for row in missed.tolist():
            self._entries[row] = None

    def _make_entries(self, stale: list[int]) -> None:
        """Infer what is known of these rows."""
        rows, tracks = np.array(stale, np.int64), self._tracks
        area_stds, depth_stds, volume_stds, rim_stds, beside_stds = (
            np.column_stack(fusion.stds(rows))
            for fusion in (self._area, self._depth, self._volume, self._rim, self._beside)
        )
        # Rims that are drawn alike in all views are better than they say, and others worse.
        scatters = self._area.scatters(rows)[:, None]
        area_stds *= scatters
        rim_stds = np.nan_to_num(rim_stds)
        apart = np.fmax(volume_stds**2 - rim_stds**2, 0.0)
        volume_stds = np.where(np.isnan(volume_stds), np.nan, np.sqrt(apart + (scatters * rim_stds) ** 2))
        beside_stds = np.hypot(scatters * rim_stds, beside_stds)
        sizes, volumes = self._area.means(rows).tolist(), self._volume.means(rows).tolist()
        depths, position_stds = self._depth.means(rows)[:, 0].tolist(), self._place.stds(rows)[0].tolist()
        area_statuses, volume_statuses = self._area.statuses(rows).tolist(), self._volume.statuses(rows).tolist()
        points = self._volume.points(rows).tolist()
        for number, row in enumerate(stale):
            sized, T_map_sized = self._sized[row]
            area, major_axis, minor_axis = sizes[number]
            (volume, bound), volume_status = volumes[number], Status(volume_statuses[number])
            area_std, area_systematic = area_stds[number].tolist()
            depth_std, depth_systematic = depth_stds[number].tolist()
            volume_std, volume_systematic = volume_stds[number].tolist()
            if volume_status in _VOLUME_KNOWN:
                pooled = self._pool(row, area, *beside_stds[number].tolist())
                if pooled is not None and pooled[1] * volume < volume_std * pooled[0]:
                    # Over the values: a small one has a small deviation.
                    volume, volume_std, volume_systematic = pooled
                bound = volume + UPPER_95 * volume_std
            measurement = dataclasses.replace(
                self._filled[row],
                area_status=Status(area_statuses[number]),
                position=tracks['position'][row].copy(),
                normal=tracks['normal'][row].copy(),
                outline=sized.outline if T_map_sized is None else T_map_sized.apply(sized.outline),
                area_m2=area,
                area_std_m2=area_std,
                area_systematic_std_m2=area_systematic,
                equivalent_diameter_m=2.0 * math.sqrt(area / math.pi),
                major_axis_m=major_axis,
                minor_axis_m=minor_axis,
                depth_max_m=depths[number],
                depth_max_std_m=depth_std,
                depth_max_systematic_std_m=depth_systematic,
                volume_m3=volume,
                volume_std_m3=volume_std,
                volume_systematic_std_m3=volume_systematic,
                volume_upper_bound_m3=bound,
                position_std_m=position_stds[number],
                point_count=points[number],
                readings=None,
            )
            observations, misses = int(tracks['observations'][row]), int(tracks['misses'][row])
            self._entries[row] = MapEntry(
                row + 1,
                int(tracks['class_id'][row]),
                self._frame_ids[row],
                measurement,
                float(tracks['confidence'][row]) / (observations + misses),
                observations,
                int(tracks['first_stamp_ns'][row]),
                int(tracks['last_stamp_ns'][row]),
                misses,
                self._closeups[row],
            )

    def _pool(
        self, row: int, area_m2: float, beside_std: float, beside_systematic_std: float
    ) -> tuple[float, float, float] | None:
        """Volume, its deviation and the systematic part of that, of all readings together; None without several views,
        or where they leave much of the opening unseen.

        beside_std, beside_systematic_std: deviation beside what the readings do or leave undone.
        """
        readings = self._readings[row]
        if readings is None or readings.views == 1:
            return None
        sized, T_map_sized = self._sized[row]
        outline = sized.outline - sized.position
        if T_map_sized is not None:
            outline = outline @ T_map_sized.rotation.T
        pooled = readings.measure(outline, area_m2, self._measurement)
        if pooled is None or pooled.unseen_share > MAX_UNSEEN_SHARE:
            return None
        pooled_std = math.sqrt(pooled.noise_variance + pooled.shape_variance + beside_std**2)
        return pooled.volume, pooled_std, math.sqrt(pooled.shape_variance + beside_systematic_std**2)


def _squared(offsets: Array, covariances: Array) -> Array:
    """Squared Mahalanobis distances, (K,)."""
    return np.asarray(np.einsum('ki,ki->k', offsets, np.linalg.solve(covariances, offsets[:, :, None])[:, :, 0]))


def _size_cost(a: Array, b: Array) -> Array:
    """0 for the same diameter, 1 for a factor of `_LARGEST_SIZE_RATIO`; 0 where one is unknown."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.asarray(np.nan_to_num(np.abs(np.log(a / b)) / math.log(_LARGEST_SIZE_RATIO), nan=0.0))
