from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.rim_edge import settle_rims


def cover_disc(radius_px: float, across_px: float = 0.0) -> NDArray[np.float64]:
    """Share of each of 120 x 160 pixels that a disc covers, its rim blurred over `across_px`."""
    v, u = np.indices((120, 160))
    return np.clip(0.5 + (radius_px - np.hypot(u - 80.3, v - 60.2)) / (1.0 + across_px), 0.0, 1.0)


def take_picture(coverage: NDArray[np.float64], inside: float, outside: float) -> NDArray[np.uint8]:
    """Linear light, encoded as sRGB."""
    light = outside + (inside - outside) * coverage
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1.0 / 2.4) - 0.055)
    return np.repeat(np.rint(255.0 * code).astype(np.uint8)[..., None], 3, axis=2)


def draw_mask(radius_px: float, *, touches_border: bool = False) -> InstanceMask:
    part = cover_disc(radius_px, across_px=1.0)[20:100, 40:120].astype(np.float32)
    return InstanceMask(part, 40, 20, 0.9, touches_border=touches_border, boundary_std_px=0.35)


@pytest.mark.parametrize('radius_px', [5.0, 12.0, 30.0])
@pytest.mark.parametrize('offset_px', [-1.2, -0.4, 0.0, 0.7])
def test_a_rim_moves_to_the_edge_of_the_picture(radius_px: float, offset_px: float) -> None:
    image = take_picture(cover_disc(radius_px), 0.02, 0.4)
    (settled,) = settle_rims([draw_mask(radius_px + offset_px)], image)
    assert settled.equivalent_diameter_px / 2.0 == pytest.approx(radius_px, abs=0.1)
    v, u = np.indices(settled.coverage.shape)
    total = settled.coverage.sum()
    assert (settled.coverage * u).sum() / total + settled.left == pytest.approx(80.3, abs=0.05)
    assert (settled.coverage * v).sum() / total + settled.top == pytest.approx(60.2, abs=0.05)
    assert settled.boundary_std_px == pytest.approx(0.19, abs=0.01)


def test_where_the_picture_shows_no_edge_a_rim_stays_and_is_known_badly() -> None:
    mask = draw_mask(12.0)
    range_maps = np.zeros((3, 60, 80), np.float32)
    range_maps[0] = np.arcsinh(3.0 * cover_disc(12.0)[::2, ::2])  # to 0.1 mm everywhere
    range_maps[1], range_maps[2] = np.arcsinh(0.1), 1.0
    noise = np.random.default_rng(0).integers(100, 120, (120, 160, 3)).astype(np.uint8)
    bright = take_picture(cover_disc(12.5), 0.5, 0.2)
    far = take_picture(cover_disc(18.0), 0.02, 0.4)
    for image in (noise, bright, far):
        (stated,) = settle_rims([mask], image)
        assert stated.coverage is mask.coverage
        assert stated.boundary_std_px == pytest.approx(0.25 * 24.0, rel=0.01)
        (shown,) = settle_rims([mask], image, range_maps)
        assert shown.boundary_std_px == pytest.approx(0.02 * 24.0, rel=0.01)


def test_what_the_border_cuts_is_left_alone() -> None:
    mask = draw_mask(12.0, touches_border=True)
    assert settle_rims([mask], take_picture(cover_disc(13.0), 0.02, 0.4)) == [mask]
    assert settle_rims([], take_picture(cover_disc(13.0), 0.02, 0.4)) == []


def test_a_rim_beside_the_border_stays_in_the_picture() -> None:
    coverage = cover_disc(12.0)[45:76, 65:97]  # ends three pixels beside the disc on all sides
    image = take_picture(coverage, 0.02, 0.4)
    (settled,) = settle_rims([InstanceMask(coverage.astype(np.float32), 0, 0, 0.9, boundary_std_px=0.35)], image)
    x, y, width, height = settled.roi
    assert x >= 0
    assert y >= 0
    assert x + width <= image.shape[1]
    assert y + height <= image.shape[0]
    assert settled.coverage.shape == (height, width)
    assert settled.area_px == pytest.approx(math.pi * 12.0**2, rel=0.02)


def test_a_rim_in_an_uneven_picture_is_known_worse_the_larger_the_airhole_is() -> None:
    uneven_px = []
    for radius_px in (8.0, 32.0):
        coverage = cover_disc(radius_px)
        image = take_picture(coverage, 0.02, 0.4)
        # One side of the wall reflects less: as large a share of the rim, whatever its length.
        image[(np.indices(coverage.shape)[1] > 80.3) & (coverage == 0.0)] //= 2
        (settled,) = settle_rims([draw_mask(radius_px)], image)
        uneven_px.append(math.sqrt(settled.boundary_std_px**2 - 0.19**2))
    assert uneven_px[1] == pytest.approx(2.0 * uneven_px[0], rel=0.1)


def test_a_stain_on_one_side_hardly_moves_a_rim() -> None:
    coverage = cover_disc(12.0)
    image = take_picture(coverage, 0.02, 0.4)
    beside = np.abs(np.indices((120, 160))[0] - 60.2) < 3.0  # a dark stripe that ends at the rim, left and right
    image[beside & (coverage == 0.0)] = 60
    (settled,) = settle_rims([draw_mask(12.0)], image)
    assert math.pi * (settled.equivalent_diameter_px / 2.0) ** 2 == pytest.approx(math.pi * 12.0**2, rel=0.03)
    # It may be a part of the airhole: 12 of 75 pixels of rim are dark, at a tenth of the brightness.
    share = 12.0 / 75.0
    unevenness = 0.9 * math.sqrt(share * (1.0 - share)) / (1.0 - 0.9 * share)
    assert 1.5 < settled.boundary_std_px < 1.26 * math.sqrt(24.0) * unevenness
    # Unless dense range, to 0.1 mm, would have shown it.
    range_maps = np.zeros((3, 60, 80), np.float32)
    range_maps[0] = np.arcsinh(3.0 * coverage[::2, ::2])
    range_maps[1], range_maps[2] = np.arcsinh(0.1), 1.0
    (seen,) = settle_rims([draw_mask(12.0)], image, range_maps)
    uneven_px = math.sqrt(settled.boundary_std_px**2 - 0.19**2)
    assert seen.boundary_std_px == pytest.approx(math.hypot(0.19, 0.38 / 1.26 * uneven_px), rel=0.01)
    range_maps[1] = np.arcsinh(1.0)
    assert settle_rims([draw_mask(12.0)], image, range_maps)[0].boundary_std_px == settled.boundary_std_px


def test_a_rim_of_any_length_is_settled() -> None:
    """OpenCV samples no more than 32767 rows at once."""
    ragged = (np.indices((160, 200)).sum(axis=0) % 2).astype(np.float32)
    image = np.repeat((60 + 120 * (1.0 - np.pad(ragged, 20)[..., None])).astype(np.uint8), 3, axis=2)
    (settled,) = settle_rims([InstanceMask(ragged, 20, 20, 0.9)], image)
    assert settled.area_px == pytest.approx(16000.0, rel=0.5)
