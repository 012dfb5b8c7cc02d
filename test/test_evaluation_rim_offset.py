from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cmml_ros.evaluation.rim_offset import RimOffset, format_rim_offsets
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.measurement.rim import see_rims


def disc(radius_px: float, softness_px: float = 0.0) -> InstanceMask:
    """Anti-aliased, or falling off logistically."""
    fine = (np.arange(61 * 16) + 0.5) / 16 - 30.5
    outside = np.hypot(*np.meshgrid(fine, fine)) - radius_px
    share = (outside < 0.0).astype(float) if softness_px == 0.0 else 1.0 / (1.0 + np.exp(outside / softness_px))
    return InstanceMask(share.reshape(61, 16, 61, 16).mean(axis=(1, 3)).astype(np.float32), 0, 0, 1.0)


def test_a_rim_half_a_pixel_too_far_in_is_said_to_be() -> None:
    found = replace(disc(19.5), boundary_std_px=0.3)
    offset = RimOffset.between(disc(20.0), found)
    # pi (20^2 - 19.5^2) over 2 pi 20
    assert offset.offset_px == pytest.approx(-0.494, abs=0.01)
    assert offset.diameter_px == pytest.approx(40.0, abs=0.05)
    assert offset.stated_px == 0.3


def test_softness_is_what_the_log_odds_move_a_rim_by() -> None:
    before = disc(20.0, 0.6)
    odds = before.coverage * math.exp(0.2)
    raised = InstanceMask((odds / (1.0 - before.coverage + odds)).astype(np.float32), 0, 0, 1.0)
    moved = RimOffset.between(before, raised)
    (seen,) = see_rims([raised], Camera(640, 480, 1000.0, 1000.0, 319.5, 239.5))
    assert seen is not None
    softness_px = seen.softness_px
    assert moved.offset_px == pytest.approx(0.2 * softness_px, rel=0.05)
    assert softness_px == pytest.approx(0.6, rel=0.12)  # and what a pixel's own width adds


def test_the_table_says_which_deviation_suits() -> None:
    rng = np.random.default_rng(1)
    rims = [RimOffset(20.0, o, 0.35) for o in -0.2 + 0.1 * rng.standard_normal(2000)]
    table = format_rim_offsets(rims)
    assert '| all (2000) | -0.20 |' in table
    assert 'Rims state 0.35 px in the median' in table
    # 95 % are within 0.2 + 1.645 * 0.1, which is 1.96 deviations of 0.18 or 0.19.
    assert '95 % of the intervals would hold with 0.18 px' in table
    assert 'too few' in format_rim_offsets(rims[:2])
