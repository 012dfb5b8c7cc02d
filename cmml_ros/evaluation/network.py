"""How well the network finds airholes and lays clouds on pictures, on simulated walls that training never saw."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from tqdm import tqdm

from cmml_ros.calibration import CalibrationMonitor, CalibrationStatus
from cmml_ros.config import InspectorConfig
from cmml_ros.errors import PoseError
from cmml_ros.evaluation.baselines import find_dark_blobs, register_by_information
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud, project_cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3
from cmml_ros.inspector import is_reported
from cmml_ros.measurement.measure import is_flat, measure
from cmml_ros.model.registration import Registrar, Registration
from cmml_ros.model.runtime import Segmenter
from cmml_ros.simulation.camera import Look
from cmml_ros.simulation.scenario import Scenario
from cmml_ros.simulation.wall import Kind

Array = NDArray[np.float64]
Finder = Callable[['TestFrame'], list[InstanceMask]]

MIN_DIAMETER_PX = 8.0
# Walls of `cmml simulate` with small seeds are for looking at; these are for judging.
UNSEEN_SEED = 5000
_BINS_PX = (3.0, 5.0, 8.0, 12.0, 20.0, 40.0, math.inf)
_BINS_MM = (2.0, 4.0, 6.0, 10.0, 15.0, 30.0, math.inf)
_RIM_TOLERANCE_PX = 2
_PERTURBATION_DEG, _PERTURBATION_M = 5.0, 0.05
# (point RMSE, m): at the scale of airholes for each sensor and task, and what others in the field report.
_FINE_INLIER_M, _FINE_INLIER_PX, _COARSE_INLIER_M = 0.005, 2.0, 0.05
_RECALL_AT_M = (0.003, 0.010, 0.015, 0.1)
_FEATURE_RECALL_RATIO = 0.1
_LEAST_POINTS = 3
_ALARM_COUNTS = ('seen', 'called', 'seen_ranged', 'called_ranged')
_DRIFT_DEG, _DRIFT_M, _DRIFT_FRAMES, _DRIFT_TRIALS = 1.0, 0.02, 10, 400


@dataclass(frozen=True, eq=False)
class TestFrame:
    """One simulated view and what is true in it.

    hole_ids: (H, W) int32, 0 for the wall. diameters_px, diameters_mm: of the airholes that are whole in the picture,
    by id. distractors: kind and pixels (H, W) of what is no airhole.
    """

    __test__ = False  # no test, whatever its name

    image: NDArray[np.uint8]
    camera: Camera
    hole_ids: NDArray[np.int32]
    diameters_px: dict[int, float]
    diameters_mm: dict[int, float]
    distractors: list[tuple[str, NDArray[np.bool_]]]
    cloud: Cloud
    T_camera_lidar: SE3


def make_frames(sensor: str, count: int, seed: int, look: Look) -> list[TestFrame]:
    """`count` views, each of a wall of its own, by a robot with this range sensor."""
    frames = []
    for number in tqdm(range(count), desc=f'simulating {sensor}', unit='frame', disable=None):
        kinds: tuple[Kind, ...] = get_args(Kind)
        scenario = Scenario(kinds[number % len(kinds)], sensor, seed + number, look)
        last = int(scenario.sweep_s * scenario.rate_hz)
        frame = scenario.frame(int(np.random.default_rng(seed + number).integers(last)))
        T_camera_map = frame.T_map_camera.inverse()
        wall = scenario.scene.wall
        distractors = []
        for item in scenario.scene.distractors:
            pixels, seen = scenario.camera.project(T_camera_map.apply(wall.points(item.outline_developed)))
            if seen.all():
                area = np.zeros(frame.rendering.hole_ids.shape, np.uint8)
                cv2.fillPoly(area, [np.rint(pixels).astype(np.int32)], 1)
                distractors.append((item.kind, area > 0))
        diameters_m = {hole.id: hole.equivalent_diameter_m for hole in scenario.scene.holes}
        diameters_px = scenario.visible_airholes(frame.T_map_camera)
        frames.append(
            TestFrame(
                frame.rendering.image,
                scenario.camera,
                np.maximum(frame.rendering.hole_ids, 0),
                diameters_px,
                {hole_id: 1e3 * diameters_m[hole_id] for hole_id in diameters_px},
                distractors,
                frame.cloud,
                T_camera_map @ scenario.camera_pose(frame.cloud_stamp_ns) @ scenario.extrinsic,
            )
        )
    return frames


def assess_segmentation(frames: Sequence[TestFrame], find: Finder, confidence: float = 0.0) -> dict[str, Any]:
    """Pixel IoU, mask AP, rim F1, recall by size and false alarms by cause of the masks that `find` gives.

    AP ranks all masks by their confidence, as COCO does; everything else counts those from `confidence` on.
    Airholes below 8 px, and what the border cuts, are neither asked for nor held against it. Of what is no airhole
    those are counted by themselves, too, on which the range sensor has three points or more: elsewhere range cannot
    tell.
    """
    overlap = union = 0
    rim_hits, rim_counts = np.zeros(2), np.zeros(2)
    by_px, by_mm = _Recall(_BINS_PX), _Recall(_BINS_MM)
    alarms: dict[str, Counter[str]] = {}
    false_blobs = 0
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, frame in enumerate(frames, start=1):
        candidates = find(frame)
        found += [
            {
                'image_id': number,
                'category_id': 1,
                'segmentation': _encode(_to_picture(mask, frame.hole_ids.shape)),
                'score': mask.confidence,
            }
            for mask in candidates
        ]
        masks = [mask for mask in candidates if mask.confidence >= confidence]
        layers = [_to_picture(mask, frame.hole_ids.shape) for mask in masks]
        asked = {hole_id for hole_id, diameter in frame.diameters_px.items() if diameter >= MIN_DIAMETER_PX}
        wanted = np.isin(frame.hole_ids, list(asked))
        ignored = ndimage.binary_dilation((frame.hole_ids > 0) & ~wanted, iterations=2)
        everything = np.any(layers, axis=0) if layers else np.zeros_like(wanted)
        overlap += int((everything & wanted).sum())
        union += int(((everything & ~ignored) | wanted).sum())
        for index, (mine, other) in enumerate(((everything, wanted), (wanted, everything))):
            edge, far = _edge(mine) & ~ignored, ndimage.distance_transform_edt(~_edge(other))
            rim_hits[index] += int((edge & (far <= _RIM_TOLERANCE_PX)).sum())
            rim_counts[index] += int(edge.sum())
        for hole_id, diameter_px in frame.diameters_px.items():
            own = frame.hole_ids == hole_id
            hit = any((layer & own).sum() > 0.5 * own.sum() for layer in layers)
            by_px.add(diameter_px, hit)
            by_mm.add(frame.diameters_mm[hole_id], hit)
        points = _count_points(frame)
        on_airhole = [bool((layer & (frame.hole_ids > 0)).any()) for layer in layers]
        for kind, area in frame.distractors:
            if 2.0 * math.sqrt(area.sum() / math.pi) >= MIN_DIAMETER_PX and not (area & (frame.hole_ids > 0)).any():
                called = any(
                    (layer & area).sum() > 0.5 * layer.sum()
                    for layer, on in zip(layers, on_airhole, strict=True)
                    if not on
                )
                ranged = int(points[area].sum()) >= _LEAST_POINTS
                alarms.setdefault(kind, Counter(dict.fromkeys(_ALARM_COUNTS, 0))).update(
                    {'seen': 1, 'called': called, 'seen_ranged': ranged, 'called_ranged': called and ranged}
                )
        false_blobs += sum(
            not on and mask.equivalent_diameter_px >= MIN_DIAMETER_PX
            for on, mask in zip(on_airhole, masks, strict=True)
        )
        truth += _describe_truth(frame, asked, number, len(truth))
    precision, recall = rim_hits / np.maximum(rim_counts, 1)
    ap50, ap = _average_precision(truth, found, [frame.hole_ids.shape for frame in frames])
    return {
        'pixel_iou': overlap / max(union, 1),
        'ap50': ap50,
        'ap50_95': ap,
        'rim_f1': 2.0 * precision * recall / max(precision + recall, 1e-9),
        'recall_by_diameter_px': by_px.shares(),
        'recall_by_diameter_mm': by_mm.shares(),
        'false_blobs_a_frame': false_blobs / len(frames),
        'false_alarms': {kind: dict(counts) for kind, counts in sorted(alarms.items())},
    }


def _count_points(frame: TestFrame) -> NDArray[np.int64]:
    """How many points of the range sensor the camera sees in each pixel (H, W)."""
    height, width = frame.hole_ids.shape
    columns, rows = np.rint(project_cloud(frame.cloud, frame.camera, frame.T_camera_lidar).pixels).astype(np.intp).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return np.bincount(rows[inside] * width + columns[inside], minlength=height * width).reshape(height, width)


def _describe_truth(frame: TestFrame, asked: set[int], number: int, before: int) -> list[dict[str, Any]]:
    truth: list[dict[str, Any]] = []
    for hole_id in np.unique(frame.hole_ids)[1:].tolist():
        own = frame.hole_ids == hole_id
        code = _encode(own)
        truth.append(
            {
                'id': before + len(truth) + 1,
                'image_id': number,
                'category_id': 1,
                'segmentation': code,
                'area': float(own.sum()),
                'bbox': coco_mask.toBbox(code).tolist(),
                'iscrowd': int(hole_id not in asked),  # what is not asked for may be found
            }
        )
    return truth


def _average_precision(
    truth: list[dict[str, Any]], found: list[dict[str, Any]], shapes: Sequence[tuple[int, ...]]
) -> tuple[float, float]:
    """AP at IoU 0.5, and its mean over 0.5 to 0.95, as COCO defines them."""
    if not found or not truth:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {
            'images': [
                {'id': i, 'height': height, 'width': width} for i, (height, width) in enumerate(shapes, start=1)
            ],
            'categories': [{'id': 1}],
            'annotations': truth,
        }
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(found), 'segm')
        evaluation.params.maxDets = [1, 100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, 0, 0, -1]  # (IoU, recall)
    return float(precision[0].mean()), float(precision.mean())


class _Recall:
    """Shares found, by size."""

    def __init__(self, bins: tuple[float, ...]) -> None:
        self._bins = bins
        self._found, self._all = np.zeros(len(bins), int), np.zeros(len(bins), int)

    def add(self, size: float, hit: bool) -> None:
        index = int(np.searchsorted(self._bins, size, side='right')) - 1
        if index >= 0:
            self._all[index] += 1
            self._found[index] += hit

    def shares(self) -> dict[str, float | None]:
        """By lower end of the bin."""
        return {
            f'{low:g}': float(found / count) if count else None
            for low, found, count in zip(self._bins[:-1], self._found, self._all, strict=False)
        }


def _to_picture(mask: InstanceMask, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    layer = np.zeros(shape, bool)
    left, top, width, height = mask.roi
    layer[top : top + height, left : left + width] = mask.coverage >= 0.5
    return layer


def _edge(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(area & ~ndimage.binary_erosion(area))


def _encode(layer: NDArray[np.bool_]) -> dict[str, Any]:
    code: dict[str, Any] = coco_mask.encode(np.asfortranarray(layer.astype(np.uint8)))
    return code


@dataclass(frozen=True, eq=False)
class RegistrationSample:
    """One registration against the truth.

    error: what the calibration check would see of a right extrinsic, the pose from the data alone after the inverse of
    the true one; None for a refusal and where nothing tells the data from the prior.
    """

    rmse_m: float
    start_rmse_m: float
    rotation_deg: float
    translation_m: float
    inlier_fine: float
    inlier_coarse: float
    found: Registration | None
    error: SE3 | None


def assess_registration(
    frames: Sequence[TestFrame], register: Callable[[TestFrame, SE3], Registration | SE3], seed: int
) -> list[RegistrationSample]:
    """What `register` makes of each frame from an extrinsic that is up to 5 degrees and 5 cm off."""
    rng = np.random.default_rng(seed)
    samples = []
    for frame in tqdm(frames, desc='registering', unit='frame', disable=None):
        wrong = SE3.from_rotation_vector(
            _direction(rng) * math.radians(rng.uniform(0.0, _PERTURBATION_DEG)),
            _direction(rng) * rng.uniform(0.0, _PERTURBATION_M),
        )
        start = wrong @ frame.T_camera_lidar
        start_rmse_m = _rmse_m(start, frame)
        try:
            result = register(frame, start)
        except PoseError:
            samples.append(RegistrationSample(math.inf, start_rmse_m, math.inf, math.inf, 0.0, 0.0, None, None))
            continue
        found = result if isinstance(result, Registration) else None
        T_found = found.T_camera_lidar if found else result
        assert isinstance(T_found, SE3)
        T_true_inverse = frame.T_camera_lidar.inverse()
        left = T_found @ T_true_inverse
        error = None
        if found is not None and found.correction is not None:
            correction = SE3.from_rotation_vector(found.correction[:3], found.correction[3:])
            error = correction @ start @ T_true_inverse
        fine, coarse = _inliers(frame, found) if found else (math.nan, math.nan)
        samples.append(
            RegistrationSample(
                _rmse_m(T_found, frame),
                start_rmse_m,
                math.degrees(float(np.linalg.norm(left.rotation_vector))),
                float(np.linalg.norm(left.translation)),
                fine,
                coarse,
                found,
                error,
            )
        )
    return samples


def summarise_registration(samples: Sequence[RegistrationSample]) -> dict[str, Any]:
    """Recalls, medians and ratios, ready for JSON: None for what there is not."""
    rmse_m = np.array([sample.rmse_m for sample in samples])
    done = [sample for sample in samples if math.isfinite(sample.rmse_m)]
    return {
        'frames': len(samples),
        'refused': len(samples) - len(done),
        'recall': {f'{1e3 * limit:g} mm': float((rmse_m < limit).mean()) for limit in _RECALL_AT_M},
        'median_rmse_mm': _known(1e3 * float(np.median(rmse_m))),
        'median_start_rmse_mm': 1e3 * float(np.median([sample.start_rmse_m for sample in samples])),
        'median_rotation_deg': float(np.median([sample.rotation_deg for sample in done])) if done else None,
        'median_translation_mm': 1e3 * float(np.median([sample.translation_m for sample in done])) if done else None,
        'inlier_ratio_5mm_2px': _known(float(np.mean([sample.inlier_fine for sample in samples]))),
        'inlier_ratio_5cm': _known(float(np.mean([sample.inlier_coarse for sample in samples]))),
        'feature_matching_recall_5mm_2px': float(
            np.mean([sample.inlier_fine > _FEATURE_RECALL_RATIO for sample in samples])
        ),
        'feature_matching_recall_5cm': float(
            np.mean([sample.inlier_coarse > _FEATURE_RECALL_RATIO for sample in samples])
        ),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def assess_drift(samples: Sequence[RegistrationSample], config: InspectorConfig, seed: int) -> dict[str, float | None]:
    """Shares of runs of ten frames in which a drift of 1 degree or of 2 cm is noticed, and in which one is made up.

    None where every frame of `samples` was refused.
    The errors of the frames are those of `samples`, drawn with replacement, and laid on extrinsics that are off or
    right. So some come again in a run, as the offset of a sensor does that stands still.
    """
    rng = np.random.default_rng(seed)
    usable = [
        (sample.error, sample.found, sample.found.covariance, sample.found.systematic)
        for sample in samples
        if sample.error is not None
        and sample.found is not None
        and sample.found.covariance is not None
        and sample.found.systematic is not None
    ]
    shares: dict[str, float | None] = {}
    for name, turn_deg, move_m in (
        ('noticed_1_deg', _DRIFT_DEG, 0.0),
        ('noticed_2_cm', 0.0, _DRIFT_M),
        ('made_up', 0.0, 0.0),
    ):
        if not usable:
            shares[name] = None
            continue
        alarms = 0
        for _ in range(_DRIFT_TRIALS):
            drift = SE3.from_rotation_vector(_direction(rng) * math.radians(turn_deg), _direction(rng) * move_m)
            monitor = CalibrationMonitor(config.registration)
            noticed = False
            for number in range(_DRIFT_FRAMES):
                error, found, covariance, systematic = usable[rng.integers(len(usable))]
                seen = error @ drift.inverse()
                correction = np.concatenate([seen.rotation_vector, seen.translation])
                stamp_ns = 200_000_000 * number
                check = monitor.add(correction, covariance, systematic, found.match_count, found.inlier_ratio, stamp_ns)
                noticed |= check.status is CalibrationStatus.DRIFTED
            alarms += noticed
        shares[name] = alarms / _DRIFT_TRIALS
    return shares


def _inliers(frame: TestFrame, found: Registration) -> tuple[float, float]:
    """Shares of the matches that are right within 5 mm and 2 px, and within 5 cm."""
    points_camera = frame.T_camera_lidar.apply(frame.cloud.points[found.matched_points])
    true_pixels, _ = frame.camera.project(points_camera)
    off_px = np.linalg.norm(found.matched_pixels - true_pixels, axis=1)
    off_m = off_px * points_camera[:, 2] / frame.camera.fx
    fine = (off_m < _FINE_INLIER_M) & (off_px < _FINE_INLIER_PX)
    return float(fine.mean()), float((off_m < _COARSE_INLIER_M).mean())


def _rmse_m(T_camera_lidar: SE3, frame: TestFrame) -> float:
    points = frame.cloud.points
    off = T_camera_lidar.apply(points) - frame.T_camera_lidar.apply(points)
    return math.sqrt(float(np.einsum('ij,ij->i', off, off).mean()))


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def evaluate_network(out: Path, config: InspectorConfig, *, frames: int, seed: int, look: Look) -> str:
    """Tables for people; the same figures as JSON in `out`/network.json."""
    confidence = config.detection.confidence_threshold
    segmenter = Segmenter(replace(config.detection, confidence_threshold=0.0))
    registrar = Registrar(segmenter.matcher, config.registration)
    views = {sensor: make_frames(sensor, frames, seed, look) for sensor in ('depth_camera', 'tof_lidar')}

    def find(frame: TestFrame, *, ranged: bool, judged: bool) -> list[InstanceMask]:
        projected = project_cloud(frame.cloud, frame.camera, frame.T_camera_lidar) if ranged else None
        masks = segmenter.segment(frame.image, projected)
        if not judged:
            return masks
        sizes = measure(masks, projected, frame.camera, config.surface, config.measurement)
        # What is confirmed counts like what the network is sure of.
        return [
            replace(mask, confidence=max(mask.confidence, confidence)) if is_reported(mask, size, config) else mask
            for mask, size in zip(masks, sizes, strict=True)
            if not is_flat(size, config.measurement)
        ]

    close, far = views['depth_camera'], views['tof_lidar']
    finders: dict[str, tuple[list[TestFrame], Finder]] = {
        'depth camera': (close, lambda frame: find(frame, ranged=True, judged=False)),
        'depth camera, judged by its depth': (close, lambda frame: find(frame, ranged=True, judged=True)),
        'LiDAR': (far, lambda frame: find(frame, ranged=True, judged=False)),
        'picture alone': (close, lambda frame: find(frame, ranged=False, judged=False)),
    }
    segmentation = {name: assess_segmentation(its, finder, confidence) for name, (its, finder) in finders.items()}
    segmentation['LoG and Otsu'] = assess_segmentation(close, lambda frame: find_dark_blobs(frame.image))
    registration: dict[str, Any] = {}
    drift: dict[str, Any] = {}
    rng = np.random.default_rng(seed)
    for sensor, its_frames in views.items():
        refined = assess_registration(
            its_frames, lambda frame, start: registrar.refine(frame.image, frame.camera, frame.cloud, start), seed
        )
        registration[f'{sensor}: refine'] = summarise_registration(refined)
        registration[f'{sensor}: match'] = summarise_registration(
            assess_registration(
                its_frames, lambda frame, _: registrar.match(frame.image, frame.camera, frame.cloud), seed
            )
        )
        registration[f'{sensor}: information distance'] = summarise_registration(
            assess_registration(
                its_frames,
                lambda frame, start: register_by_information(frame.image, frame.camera, frame.cloud, start, rng),
                seed,
            )
        )
        drift[sensor] = assess_drift(refined, config, seed)
    document = {
        'model': segmenter.model_id,
        'frames': frames,
        'seed': seed,
        'look': look,
        'segmentation': segmentation,
        'registration': registration,
        'drift': drift,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / 'network.json').write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    return format_network(document)


def format_network(document: dict[str, Any]) -> str:
    """Markdown tables of what `evaluate_network` found."""
    lines = [f'{document["model"]}, {document["frames"]} frames a sensor, look {document["look"]}', '']
    columns = ('airholes of 8 px and more', 'pixel IoU', 'AP50', 'AP50:95', 'rim F1', 'false blobs a frame')
    lines += _head(*columns, 'painted spots called', 'of those with points')
    for name, row in document['segmentation'].items():
        spots = row['false_alarms'].get('painted_spot', dict.fromkeys(_ALARM_COUNTS, 0))
        lines.append(
            f'| {name} | {row["pixel_iou"]:.3f} | {row["ap50"]:.3f} | {row["ap50_95"]:.3f} | {row["rim_f1"]:.3f} '
            f'| {row["false_blobs_a_frame"]:.2f} | {spots["called"]} of {spots["seen"]} '
            f'| {spots["called_ranged"]} of {spots["seen_ranged"]} |'
        )
    recalls = [f'< {1e3 * limit:g} mm' for limit in _RECALL_AT_M]
    lines += ['', *_head('from up to 5 degrees and 5 cm off', 'refused', *recalls, 'median', 'turned', 'inliers')]
    for name, row in document['registration'].items():
        recall = ' | '.join(f'{share:.2f}' for share in row['recall'].values())
        lines.append(
            f'| {name} | {row["refused"]} | {recall} | {_format(row["median_rmse_mm"], ".1f", " mm")} '
            f'| {_format(row["median_rotation_deg"], ".2f", " deg")} | {_format(row["inlier_ratio_5mm_2px"], ".2f")} |'
        )
    lines += ['', *_head('within 10 frames', '1 degree noticed', '2 cm noticed', 'drift made up')]
    lines += [
        f'| {sensor} | {" | ".join(_format(share, ".3f") for share in row.values())} |'
        for sensor, row in document['drift'].items()
    ]
    return '\n'.join(lines)


def _head(*columns: str) -> list[str]:
    return ['| ' + ' | '.join(columns) + ' |', '|---' * len(columns) + '|']


def _format(value: float | None, form: str, unit: str = '') -> str:
    return '-' if value is None else f'{value:{form}}{unit}'
