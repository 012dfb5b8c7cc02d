import numpy as np
import pytest

from cmml_ros.config import DetectionConfig
from cmml_ros.model.instances import split_instances


def disc(radius: float, x: float, y: float, shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Share of each pixel inside a disc, to a good approximation."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0.0, 1.0).astype(np.float32)


def test_a_disc_of_ten_pixels_radius_has_its_area():
    inside = disc(10, 60, 50)
    drawn = inside / (inside + (1.0 - inside) * np.float32(np.exp(0.3)))  # too far in, as the network does
    (mask,) = split_instances(drawn, np.zeros((120, 160), np.float32), DetectionConfig())
    assert mask.area_px == pytest.approx(np.pi * 100, rel=0.005)
    assert np.isnan(mask.boundary_std_px)  # `settle_rims` knows
    assert mask.equivalent_diameter_px == pytest.approx(20.0, rel=0.003)
    assert not mask.touches_border
    assert mask.left <= 50
    assert mask.top <= 40


def test_touching_airholes_are_parted_along_their_rim():
    left, right = disc(12, 50, 60), disc(9, 71.5, 60)
    rim = np.zeros((120, 160), np.float32)
    rim[50:70, 61:64] = 0.9
    masks = split_instances(np.maximum(left, right), rim, DetectionConfig())
    assert [round(mask.area_px) for mask in sorted(masks, key=lambda m: m.left)] == pytest.approx(
        [np.pi * 144, np.pi * 81], rel=0.03
    )


@pytest.mark.parametrize(('left_px', 'right_px'), [(4.5, 4.5), (6.0, 4.5), (30.0, 22.0)])
def test_touching_airholes_are_parted_at_a_neck_where_no_rim_is_seen(left_px: float, right_px: float):
    left, right = disc(left_px, 50, 60), disc(right_px, 50 + 0.95 * (left_px + right_px), 60)
    masks = split_instances(np.maximum(left, right), np.zeros((120, 160), np.float32), DetectionConfig())
    areas_px = [mask.area_px for mask in sorted(masks, key=lambda mask: mask.left)]
    assert areas_px == pytest.approx([np.pi * left_px**2, np.pi * right_px**2], rel=0.12)


def range_maps(depth_mm: np.ndarray, noise_mm: float = 0.1) -> np.ndarray:
    """As of `range_features` where every second cell has a reading."""
    noisy = depth_mm + np.random.default_rng(1).normal(0.0, noise_mm, depth_mm.shape)
    support = np.full(depth_mm.shape, 0.5)
    support[::2, ::2] = support[2::4, 1::2] = 1.0
    maps = np.stack([np.arcsinh(noisy), np.full_like(noisy, np.arcsinh(noise_mm)), support])
    return maps[:, ::2, ::2].astype(np.float32)


def cap_mm(radius: float, x: float, y: float, depth_mm: float) -> np.ndarray:
    v, u = np.indices((120, 160))
    return depth_mm * np.maximum(1.0 - ((u - x) ** 2 + (v - y) ** 2) / radius**2, 0.0)


def test_a_neck_is_none_where_range_shows_one_cavity():
    # The edge of a shadow takes two bites out of what the picture shows of one cap.
    mask = np.maximum(disc(18.0, 60.0, 60.0), disc(18.0, 88.0, 60.0))
    nothing = np.zeros_like(mask)
    assert len(split_instances(mask, nothing, DetectionConfig())) == 2
    one = range_maps(cap_mm(36.0, 74.0, 60.0, 8.0))
    assert len(split_instances(mask, nothing, DetectionConfig(), one)) == 1
    two = range_maps(np.maximum(cap_mm(18.0, 60.0, 60.0, 8.0), cap_mm(18.0, 88.0, 60.0, 8.0)))
    assert len(split_instances(mask, nothing, DetectionConfig(), two)) == 2
    noise_alone = range_maps(np.zeros_like(mask), noise_mm=20.0)
    assert len(split_instances(mask, nothing, DetectionConfig(), noise_alone)) == 2


def test_a_rim_across_is_none_where_range_shows_one_cavity():
    # The edge of a shadow looks like a rim.
    mask, rim = disc(18.0, 80.0, 60.0), np.zeros((120, 160), np.float32)
    rim[:, 83:86] = 0.9 * mask[:, 83:86]
    assert len(split_instances(mask, rim, DetectionConfig())) == 2
    (whole,) = split_instances(mask, rim, DetectionConfig(), range_maps(cap_mm(18.0, 80.0, 60.0, 4.0)))
    assert whole.area_px == pytest.approx(np.pi * 18.0**2, rel=0.02)
    wall_between = np.maximum(cap_mm(12.0, 72.0, 60.0, 4.0), cap_mm(7.0, 91.0, 60.0, 2.0))
    assert len(split_instances(mask, rim, DetectionConfig(), range_maps(wall_between))) == 2


def test_a_bean_a_star_and_a_slot_are_one_airhole_each():
    no_rim = np.zeros((120, 160), np.float32)
    bean = np.maximum.reduce([disc(8, 50 + 4 * step, 60 - 0.4 * step**2) for step in range(-3, 4)])
    slot = np.maximum.reduce([disc(4, 40 + 2 * step, 60) for step in range(20)])
    rows, columns = np.mgrid[:120, :160]
    angle = np.arctan2(rows - 60, columns - 80)
    star = (np.hypot(rows - 60, columns - 80) < 20 + 6 * np.cos(5 * angle)).astype(np.float32)
    for shape in (bean, slot, star):
        assert len(split_instances(shape, no_rim, DetectionConfig())) == 1


def test_what_lies_in_a_ring_is_an_airhole_of_its_own():
    ring = np.minimum(disc(30, 60, 60), 1.0 - disc(20, 60, 60))
    masks = split_instances(ring + disc(8, 60, 60), np.zeros((120, 160), np.float32), DetectionConfig())
    (inner,) = (mask for mask in masks if mask.left > 40)
    assert inner.area_px == pytest.approx(np.pi * 64, rel=0.05)


def test_a_blob_at_the_border_is_flagged():
    (mask,) = split_instances(disc(10, 4, 50), np.zeros((120, 160), np.float32), DetectionConfig())
    assert mask.touches_border


def test_specks_and_doubtful_blobs_are_left_out():
    rim = np.zeros((120, 160), np.float32)
    assert split_instances(disc(1.0, 60, 50), rim, DetectionConfig(min_diameter_px=3.0)) == []
    faint = 0.6 * disc(10, 60, 50)
    assert split_instances(faint, rim, DetectionConfig(confidence_threshold=0.7)) == []
    assert len(split_instances(faint, rim, DetectionConfig(confidence_threshold=0.5))) == 1


def test_the_order_does_not_depend_on_labels():
    probability = np.maximum(disc(5, 130, 20), disc(5, 30, 90))
    masks = split_instances(probability, np.zeros((120, 160), np.float32), DetectionConfig())
    assert [mask.top for mask in masks] == sorted(mask.top for mask in masks)
