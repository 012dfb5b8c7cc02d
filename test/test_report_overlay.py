from __future__ import annotations

from math import nan, pi
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.report.overlay import draw_overlay, label_lines


def make_defect(column: float, row: float, radius_px: float, status: Status = Status.MEASURED) -> Defect:
    angles = np.linspace(0, 2 * pi, 64, endpoint=False)
    rim = np.stack([column + radius_px * np.cos(angles), row + radius_px * np.sin(angles)], axis=1)
    left, top = np.floor(rim.min(axis=0)).astype(int).tolist()
    width, height = (np.ceil(rim.max(axis=0)).astype(int) - (left, top)).tolist()
    measurement = Measurement(Status.MEASURED, status, equivalent_diameter_m=0.0104, volume_m3=123.4e-9)
    return Defect(0, 0.9, (left, top, width, height), rim, measurement)


def draw(image: NDArray[np.uint8], *defects: Defect) -> NDArray[np.uint8]:
    inspection: Any = SimpleNamespace(frame=SimpleNamespace(image=image), defects=defects)
    return draw_overlay(inspection)


@pytest.mark.parametrize('size', [(720, 1280), (520, 1039), (48, 64)])
def test_rims_are_drawn_where_they_are_in_the_color_of_their_status(size: tuple[int, int]):
    image = np.full((*size, 3), 128, np.uint8)
    column, row = size[1] / 2, size[0] / 2
    overlay = draw(image, make_defect(column, row, 15.0, Status.SHAPE_PRIOR))
    assert overlay.shape == image.shape
    assert overlay.dtype == np.uint8
    blue, _, red = np.moveaxis(overlay.astype(int), 2, 0)
    rows, columns = np.nonzero(red - blue > 60)  # amber, also where it fades into the dark edge
    on_rim = np.abs(np.hypot(columns - column, rows - row) - 15.0) < 2
    assert on_rim.sum() > 45  # a circle of 15 pixels is 94 pixels long
    assert (overlay[round(row), round(column)] == 128).all()  # the inside stays as it is
    assert (image == 128).all()


def test_a_picture_without_airholes_says_so_and_stays_otherwise():
    image = np.full((480, 640, 3), 128, np.uint8)
    overlay = draw(image)
    changed = (overlay != image).any(axis=2)
    assert 0 < changed.sum() < 0.02 * changed.size


def test_the_legend_keeps_clear_of_airholes():
    image = np.full((480, 640, 3), 128, np.uint8)
    overlay = draw(image, make_defect(30, 450, 10.0))
    assert (overlay[450, 30] == 128).all()


def test_crowds_and_borders_are_no_trouble():
    generator = np.random.default_rng(3)
    image = np.full((480, 640, 3), 128, np.uint8)
    defects = [
        make_defect(*generator.uniform((-5, -5), (645, 485)), generator.uniform(1, 30), Status(generator.integers(6)))
        for _ in range(200)
    ]
    assert draw(image, *defects).shape == image.shape


@pytest.mark.parametrize(
    ('measurement', 'lines'),
    [
        (Measurement(Status.MEASURED, Status.MEASURED, equivalent_diameter_m=0.0104, volume_m3=123.4e-9),
         ['10.4 mm', '123 mm3']),
        (Measurement(Status.MEASURED, Status.MEASURED, equivalent_diameter_m=0.0031, volume_m3=4.56e-9),
         ['3.1 mm', '4.6 mm3']),
        (Measurement(Status.MEASURED, Status.BELOW_DETECTION_LIMIT, equivalent_diameter_m=0.0031, volume_m3=4.56e-9,
                     volume_upper_bound_m3=20e-9), ['3.1 mm', '< 20 mm3']),
        (Measurement(Status.MEASURED, Status.NO_POINTS, equivalent_diameter_m=0.0031, volume_m3=nan), ['3.1 mm']),
        (Measurement.unknown(Status.NO_TRANSFORM, 'no extrinsic'), []),
    ],
)  # fmt: skip
def test_a_label_says_only_what_is_known(measurement: Measurement, lines: list[str]):
    assert label_lines(measurement) == lines
