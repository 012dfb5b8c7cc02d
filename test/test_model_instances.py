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
    assert mask.boundary_std_px == 0.35
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
