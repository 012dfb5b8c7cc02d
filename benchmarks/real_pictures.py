"""How a network does on real photographs it never saw: airholes pointed at by eye, holes with masks, concrete without.

    python benchmarks/real_pictures.py --points DIR --masks DIR --sound DIR [--model small]

--points: pictures with a points.json beside them ({"name": {"clear": [[x, y], ...], "small": [...]}}).
--masks: images/ and labels/ (255 inside a hole). --sound: images/ of damaged concrete in which no airhole is labelled.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from cmml_ros.config import DetectionConfig
from cmml_ros.model.runtime import Segmenter

# A blob whose mask comes this close to a point counts as that airhole.
_REACH_PX = 4.0
_MIN_FALSE_DIAMETER_PX = 3.0


def score_points(segmenter: Segmenter, folder: Path) -> dict[str, float]:
    """Share of the airholes pointed at that were found, and false blobs of 3 px and more a picture."""
    truth = {
        name: points for name, points in json.loads((folder / 'points.json').read_text()).items() if name != 'what'
    }
    found, total, false_blobs = {'clear': 0, 'small': 0}, {'clear': 0, 'small': 0}, 0
    for name, kinds in truth.items():
        image = cv2.imread(str(folder / f'{name}.jpg'))
        masks = segmenter.segment(np.asarray(image, np.uint8), None)
        claimed = [False] * len(masks)
        for kind in ('clear', 'small'):
            for x, y in kinds[kind]:
                total[kind] += 1
                hits = [i for i, mask in enumerate(masks) if _distance(mask, x, y) <= _REACH_PX]
                found[kind] += bool(hits)
                for i in hits:
                    claimed[i] = True
        false_blobs += sum(
            not used and mask.equivalent_diameter_px >= _MIN_FALSE_DIAMETER_PX
            for used, mask in zip(claimed, masks, strict=True)
        )
    return {
        'clear_found': found['clear'] / total['clear'],
        'small_found': found['small'] / total['small'],
        'false_blobs_a_picture': false_blobs / len(truth),
    }


def _distance(mask: object, x: float, y: float) -> float:
    rows, columns = np.nonzero(mask.coverage >= 0.5)
    if len(rows) == 0:
        return float('inf')
    return float(np.hypot(columns + mask.left - x, rows + mask.top - y).min())


def score_masks(segmenter: Segmenter, folder: Path) -> dict[str, float]:
    """Pixel IoU over all pictures of a folder with masks."""
    intersection = union = 0
    for path in sorted((folder / 'images').glob('*.jpg')):
        label = cv2.imread(str(folder / 'labels' / f'{path.stem}.png'), cv2.IMREAD_GRAYSCALE) > 127
        mask, _ = segmenter.probabilities(np.asarray(cv2.imread(str(path)), np.uint8), None)
        inside = mask >= 0.5
        intersection += int((inside & label).sum())
        union += int((inside | label).sum())
    return {'iou': intersection / union}


def score_sound(segmenter: Segmenter, folder: Path) -> dict[str, float]:
    """Blobs of 3 px and more a picture, and how many of them lie on labelled damage."""
    blobs = on_damage = pictures = 0
    for path in sorted((folder / 'images').glob('*.jpg')):
        pictures += 1
        damage = cv2.imread(str(folder / 'masks' / f'{path.stem}.png')).max(axis=2) > 0
        for mask in segmenter.segment(np.asarray(cv2.imread(str(path)), np.uint8), None):
            left, top, width, height = mask.roi
            blobs += 1
            on_damage += bool((damage[top : top + height, left : left + width] & (mask.coverage >= 0.5)).any())
    return {'blobs_a_picture': blobs / pictures, 'on_damage_a_picture': on_damage / pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--points', type=Path)
    parser.add_argument('--masks', type=Path)
    parser.add_argument('--sound', type=Path)
    parser.add_argument('--model', default='small')
    arguments = parser.parse_args()
    segmenter = Segmenter(DetectionConfig(model=arguments.model))
    result: dict[str, object] = {'model': segmenter.model_id}
    for name, score in (('points', score_points), ('masks', score_masks), ('sound', score_sound)):
        folder = getattr(arguments, name)
        if folder is not None:
            result[name] = score(segmenter, folder)
    print(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
