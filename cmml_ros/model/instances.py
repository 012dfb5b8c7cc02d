"""From probability maps to single airholes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.config import DetectionConfig
from cmml_ros.geometry.mask import InstanceMask

# The soft edge of a mask reaches this far outside its core.
_MARGIN_PX = 3


def split_instances(mask: NDArray[np.float32], rim: NDArray[np.float32], config: DetectionConfig) -> list[InstanceMask]:
    """One InstanceMask per airhole, ordered by row and column of its box.

    mask, rim: (H, W) probabilities of "inside" and "on the rim". Airholes that touch are parted along their rims: the
    cores (inside, not on the rim) are flooded over the mask from their own side.
    """
    inside = mask >= config.mask_threshold
    blobs, blob_count = ndimage.label(inside, structure=np.ones((3, 3)))
    masks: list[InstanceMask] = []
    for index, box in enumerate(ndimage.find_objects(blobs), start=1):
        window = _grow(box, mask.shape)
        own = blobs[window] == index
        labels = _part_touching(own, rim[window])
        others = (blobs[window] != 0) & ~own
        for label in range(1, int(labels.max()) + 1):
            masks.extend(_make_mask(mask[window], labels, label, others, window, mask.shape, config))
    assert blob_count >= 0
    return sorted(masks, key=lambda item: (item.top, item.left))


def _grow(box: tuple[slice, slice], shape: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = box
    return (
        slice(max(rows.start - _MARGIN_PX, 0), min(rows.stop + _MARGIN_PX, shape[0])),
        slice(max(columns.start - _MARGIN_PX, 0), min(columns.stop + _MARGIN_PX, shape[1])),
    )


def _part_touching(own: NDArray[np.bool_], rim: NDArray[np.float32]) -> NDArray[np.int32]:
    """Labels 1..n of the airholes in one blob."""
    cores, count = ndimage.label(own & (rim < 0.5))
    if count > 1:
        sizes = ndimage.sum_labels(own, cores, np.arange(1, count + 1))
        # A speck is no airhole: a real core is a good part of the largest.
        keep = np.flatnonzero(sizes >= max(4.0, 0.1 * sizes.max())) + 1
        if len(keep) > 1:
            markers = np.zeros(own.shape, np.int32)
            for new, old in enumerate(keep, start=1):
                markers[cores == old] = new
            nearest = ndimage.distance_transform_edt(markers == 0, return_distances=False, return_indices=True)
            return np.where(own, markers[tuple(nearest)], 0).astype(np.int32)
    return own.astype(np.int32)


def _make_mask(
    mask: NDArray[np.float32],
    labels: NDArray[np.int32],
    label: int,
    others: NDArray[np.bool_],
    window: tuple[slice, slice],
    shape: tuple[int, ...],
    config: DetectionConfig,
) -> list[InstanceMask]:
    core = labels == label
    area_px = float(mask[core].sum())
    if 2.0 * np.sqrt(area_px / np.pi) < config.min_diameter_px:
        return []
    confidence = float(mask[core].mean())
    if confidence < config.confidence_threshold:
        return []
    kernel = np.ones((2 * _MARGIN_PX + 1, 2 * _MARGIN_PX + 1), np.uint8)
    near = cv2.dilate(core.astype(np.uint8), kernel).astype(bool)
    foreign = others | ((labels != 0) & ~core)
    coverage = np.where(near & ~foreign, mask, 0.0).astype(np.float32)
    rows, columns = window
    core_rows, core_columns = np.nonzero(core)
    touches = (
        core_rows.min() + rows.start <= 1
        or core_columns.min() + columns.start <= 1
        or core_rows.max() + rows.start >= shape[0] - 2
        or core_columns.max() + columns.start >= shape[1] - 2
    )
    return [InstanceMask(coverage, columns.start, rows.start, confidence, bool(touches))]
