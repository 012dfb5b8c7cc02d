"""The camera image with what was found in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.measurement.defect import Defect, Measurement, Status

if TYPE_CHECKING:  # the inspector brings torch, a picture does not need it
    from cmml_ros.inspector import Inspection

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, width, height in pixels

# By how the volume came about; told apart also by people who do not see red and green as different.
STATUS_COLORS_RGB = {
    Status.MEASURED: (64, 224, 96),
    Status.SHAPE_PRIOR: (255, 196, 0),
    Status.BELOW_DETECTION_LIMIT: (72, 176, 255),
    Status.NO_POINTS: (216, 216, 216),
    Status.NO_TRANSFORM: (216, 216, 216),
    Status.CUT_BY_BORDER: (255, 128, 224),
}
STATUS_WORDS = {
    Status.MEASURED: 'measured',
    Status.SHAPE_PRIOR: 'shape prior',
    Status.BELOW_DETECTION_LIMIT: 'below detection limit',
    Status.NO_POINTS: 'no points',
    Status.NO_TRANSFORM: 'no transform',
    Status.CUT_BY_BORDER: 'cut by border',
}
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUBPIXEL_BITS = 4
_GAP_PX = 4


def draw_overlay(inspection: Inspection) -> Image:
    """A copy of the image, (H, W, 3) BGR uint8, with rims colored by volume status, labels (mm, mm3) and a legend."""
    image = inspection.frame.image.copy()
    defects = sorted(inspection.defects, key=lambda defect: defect.roi[2] * defect.roi[3], reverse=True)
    scale = min(max(image.shape[0] / 1600, 0.4), 1.0)
    for defect in defects:
        _draw_rim(image, defect, scale)
    taken = [defect.roi for defect in defects]
    taken.append(_draw_legend(image, defects, scale))
    for defect in defects:
        _draw_label(image, defect, scale, taken)
    return image


def label_lines(measurement: Measurement) -> list[str]:
    """Diameter and volume of one airhole for a person to read, in mm and mm3; only what is known."""
    lines = []
    if np.isfinite(measurement.equivalent_diameter_m):
        lines.append(f'{measurement.equivalent_diameter_m * 1e3:.1f} mm')
    volume_mm3, bound_mm3 = measurement.volume_m3 * 1e9, measurement.volume_upper_bound_m3 * 1e9
    if measurement.volume_status in (Status.MEASURED, Status.SHAPE_PRIOR) and np.isfinite(volume_mm3):
        lines.append(f'{volume_mm3:.{_decimals(volume_mm3)}f} mm3')
    elif np.isfinite(bound_mm3):
        lines.append(f'< {bound_mm3:.{_decimals(bound_mm3)}f} mm3')
    return lines


def _decimals(value: float) -> int:
    return 1 if value < 10.0 else 0


def _draw_rim(image: Image, defect: Defect, scale: float) -> None:
    rim = np.round(defect.outline_px * 2**_SUBPIXEL_BITS).astype(np.int32).reshape(-1, 1, 2)
    width = max(round(2 * scale), 1)
    # Dark below bright: seen on light and on dark concrete.
    for color, thickness in (((0, 0, 0), width + 1), (_color(defect), width)):
        cv2.polylines(image, [rim], True, color, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_label(image: Image, defect: Defect, scale: float, taken: list[Box]) -> None:
    """Beside the airhole where there is room; left out where there is none."""
    lines = label_lines(defect.measurement)
    if not lines:
        return
    size = _text_size(lines, scale)
    for box in _places_around(defect.roi, size):
        if _is_inside(box, image) and not any(_overlap(box, other) for other in taken if other != defect.roi):
            _draw_text(image, lines, box, scale, [_color(defect)] * len(lines))
            taken.append(box)
            return


def _draw_legend(image: Image, defects: list[Defect], scale: float) -> Box:
    """How many airholes there are of each status, in the corner where it hides the fewest of them."""
    counts = Counter(defect.measurement.volume_status for defect in defects)
    lines = [f'{len(defects)} airhole{"" if len(defects) == 1 else "s"}; volume:' if defects else 'no airholes']
    lines += [f'{count} {STATUS_WORDS[status]}' for status, count in sorted(counts.items())]
    width, height = _text_size(lines, scale)
    if 4 * width * height > image.shape[0] * image.shape[1]:
        return 0, 0, 0, 0  # a thumbnail has no room for it
    right, bottom = image.shape[1] - width - _GAP_PX, image.shape[0] - height - _GAP_PX
    corners = [(left, top, width, height) for top in (bottom, _GAP_PX) for left in (_GAP_PX, right)]
    box = min(corners, key=lambda corner: sum(_overlap(corner, defect.roi) for defect in defects))
    colors = [(255, 255, 255), *(STATUS_COLORS_RGB[status][::-1] for status in sorted(counts))]
    _draw_text(image, lines, box, scale, colors)
    return box


def _draw_text(image: Image, lines: list[str], box: Box, scale: float, colors: Sequence[tuple[int, ...]]) -> None:
    left, top, width, height = box
    patch = image[max(top, 0) : top + height, max(left, 0) : left + width]
    patch[:] = patch // 4
    for index, (line, color) in enumerate(zip(lines, colors, strict=True)):
        baseline = top + _GAP_PX + (index + 1) * _line_height(scale) - round(8 * scale)
        cv2.putText(image, line, (left + _GAP_PX, baseline), _FONT, scale, color, 1, cv2.LINE_AA)


def _text_size(lines: list[str], scale: float) -> tuple[int, int]:
    width = max(cv2.getTextSize(line, _FONT, scale, 1)[0][0] for line in lines)
    return width + 2 * _GAP_PX, len(lines) * _line_height(scale) + 2 * _GAP_PX


def _line_height(scale: float) -> int:
    return round(32 * scale)


def _places_around(roi: Box, size: tuple[int, int]) -> Iterator[Box]:
    left, top, width, height = roi
    label_width, label_height = size
    right, bottom = left + width + _GAP_PX, top + height + _GAP_PX
    middle = top + (height - label_height) // 2
    yield right, middle, *size
    yield left - label_width - _GAP_PX, middle, *size
    yield left, top - label_height - _GAP_PX, *size
    yield left, bottom, *size
    yield right, top - label_height, *size
    yield right, bottom - _GAP_PX, *size


def _is_inside(box: Box, image: Image) -> bool:
    left, top, width, height = box
    return left >= 0 and top >= 0 and left + width <= image.shape[1] and top + height <= image.shape[0]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _color(defect: Defect) -> tuple[int, ...]:
    """BGR."""
    return STATUS_COLORS_RGB[defect.measurement.volume_status][::-1]
