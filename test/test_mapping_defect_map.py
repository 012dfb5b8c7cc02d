from __future__ import annotations

import dataclasses
from math import nan, pi, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmml_ros.config import MapConfig, MeasurementConfig
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.mapping.fusion import Fusion
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.uncertainty import Budget

# The wall is the plane z = 0.5 m of the map; the camera looks along z.
CAMERA = 'camera_optical_frame'


def make_measurement(x_m: float, y_m: float = 0.0, diameter_m: float = 0.010, **changes: Any) -> Measurement:
    angles = np.linspace(0, 2 * pi, 12, endpoint=False)
    rim = np.stack([np.cos(angles), np.sin(angles), np.zeros(12)], axis=1) * diameter_m / 2
    center = np.array([x_m, y_m, 0.5])
    measurement = Measurement(
        area_status=Status.MEASURED,
        volume_status=Status.MEASURED,
        position=center,
        normal=np.array([0.0, 0.0, -1.0]),
        outline=rim + center,
        area_m2=pi * diameter_m**2 / 4,
        area_std_m2=1e-6,
        equivalent_diameter_m=diameter_m,
        major_axis_m=diameter_m,
        minor_axis_m=diameter_m,
        depth_max_m=0.003,
        depth_max_std_m=1e-4,
        volume_m3=1e-7,
        volume_std_m3=1e-8,
        volume_upper_bound_m3=1.2e-7,
        position_std_m=2e-4,
        point_count=50,
    )
    return dataclasses.replace(measurement, **changes)


def make_defect(measurement: Measurement, confidence: float = 0.9) -> Defect:
    return Defect(0, confidence, (0, 0, 10, 10), np.zeros((0, 2)), measurement)


def observe(defect_map: DefectMap, *views: Measurement, camera_x_m: float = 0.0, stamp_ns: int = 0) -> list[int]:
    """`views` are given in the map; the camera has moved along x and sees them shifted."""
    T_map_camera = SE3(np.eye(3), np.array([camera_x_m, 0.0, 0.0]))
    defects = [make_defect(view.transformed(T_map_camera.inverse())) for view in views]
    return defect_map.add(defects, T_map_camera, stamp_ns, CAMERA)


def test_the_same_airhole_from_two_places_is_one_entry_in_the_map_frame():
    defect_map = DefectMap(MapConfig(), 'map')
    assert observe(defect_map, make_measurement(0.1), camera_x_m=0.0, stamp_ns=5) == [1]
    assert observe(defect_map, make_measurement(0.1), camera_x_m=0.3, stamp_ns=9) == [1]
    (entry,) = defect_map.entries
    assert (entry.observations, entry.first_stamp_ns, entry.last_stamp_ns, entry.frame_id) == (2, 5, 9, 'map')
    assert entry.measurement.position == pytest.approx([0.1, 0.0, 0.5])
    assert entry.measurement.outline[:, 0].mean() == pytest.approx(0.1)
    assert entry.measurement.point_count == 100


def test_neighbours_stay_apart_and_ids_follow_appearance():
    defect_map = DefectMap(MapConfig(gate_m=0.0005))
    assert observe(defect_map, make_measurement(0.10), make_measurement(0.12)) == [1, 2]
    assert observe(defect_map, make_measurement(0.12), make_measurement(0.14), make_measurement(0.10)) == [2, 3, 1]


def test_one_frame_never_gives_one_id_twice():
    defect_map = DefectMap(MapConfig(gate_m=0.01))
    observe(defect_map, make_measurement(0.1))
    assert sorted(observe(defect_map, make_measurement(0.101), make_measurement(0.099))) == [1, 2]


def test_assignment_takes_the_least_total_distance():
    # Greedy matching would give 1 to the view at 0.103 m (nearest pair first) and leave the other without partner.
    defect_map = DefectMap(MapConfig(gate_m=0.002))
    observe(defect_map, make_measurement(0.100), make_measurement(0.105))
    assert observe(defect_map, make_measurement(0.1029), make_measurement(0.1075)) == [1, 2]


def test_a_far_larger_airhole_at_the_same_place_is_another_one():
    defect_map = DefectMap(MapConfig())
    observe(defect_map, make_measurement(0.1, diameter_m=0.004))
    assert observe(defect_map, make_measurement(0.1, diameter_m=0.020)) == [2]


def test_the_other_side_of_an_edge_is_another_airhole():
    defect_map = DefectMap(MapConfig())
    observe(defect_map, make_measurement(0.1))
    assert observe(defect_map, make_measurement(0.1, normal=np.array([1.0, 0.0, 0.0]))) == [2]


def test_fusion_weighs_by_information():
    # Deviations of 1 and 2 %: weights 1 and 1/4, so (1 * 100 + 0.25 * 150) / 1.25 = 110 mm2.
    defect_map = DefectMap(MapConfig())
    observe(defect_map, make_measurement(0.1, area_m2=100e-6, area_std_m2=1e-6))
    observe(defect_map, make_measurement(0.1, area_m2=150e-6, area_std_m2=3e-6))
    fused = defect_map.entries[0].measurement
    assert fused.area_m2 == pytest.approx(110e-6)
    assert fused.area_std_m2 == pytest.approx(1.4e-6)  # (1 * 1 + 0.25 * 3) / 1.25: correlated errors do not average out
    assert fused.equivalent_diameter_m == pytest.approx(2 * sqrt(110e-6 / pi))


@pytest.mark.parametrize(
    ('areas_mm2', 'factor'),
    [
        # Chi-squared is 2 (d / 2 / 0.03)^2 of the mean for a difference d of two. The odds of a third of the deviation,
        # for f degrees of freedom, are 1/3 3^f exp(-4 chi-squared). Alike, two: 1 to 1; of the variance (1/9 + 1) / 2.
        ((100.0, 100.0), sqrt(5.0) / 3.0),
        # Alike, nine: 2187 to 1.
        ((100.0,) * 9, sqrt((2187.0 / 9.0 + 1.0) / 2188.0)),
        # As far apart as was stated, chi-squared 1: 1 to 54.6.
        ((100.0, 100.0 * (1.0 + 0.03 * sqrt(2.0))), sqrt((1.0 / 9.0 + 54.6) / 55.6)),
        # Four times as far, chi-squared 16: (4 + 16) / (4 + 1) of the variance.
        ((100.0 * (1.0 - 0.06 * sqrt(2.0)), 100.0 * (1.0 + 0.06 * sqrt(2.0))), 2.0),
        # Alone it tells nothing.
        ((100.0,), 1.0),
    ],
)
def test_rims_are_as_good_as_their_scatter_makes_probable(areas_mm2: tuple[float, ...], factor: float):
    defect_map = DefectMap(MapConfig())
    for area_mm2 in areas_mm2:  # 3 % new in each view, 4 % shared
        area = area_mm2 * 1e-6
        stds = {'area_std_m2': 0.05 * area, 'area_systematic_std_m2': 0.04 * area}
        observe(defect_map, make_measurement(0.1, area_m2=area, **stds))
    fused = defect_map.entries[0].measurement
    mean = np.mean(areas_mm2) * 1e-6
    expected = mean * sqrt(0.03**2 / len(areas_mm2) + 0.04**2)
    assert fused.area_m2 == pytest.approx(mean)
    assert fused.area_std_m2 == pytest.approx(factor * expected, rel=0.03)
    assert fused.area_systematic_std_m2 == pytest.approx(factor * 0.04 * mean, rel=0.03)


@given(st.floats(0.01, 0.2), st.floats(0.5, 2.0))
def test_what_is_drawn_small_counts_no_more_than_what_is_drawn_large(share, ratio):
    # Deviations that grow with the value: both views tell as much, so the mean is the middle.
    defect_map = DefectMap(MapConfig())
    for area in (100e-6, ratio * 100e-6):
        observe(defect_map, make_measurement(0.1, area_m2=area, area_std_m2=share * area))
    assert defect_map.entries[0].measurement.area_m2 == pytest.approx(50e-6 * (1.0 + ratio))


def test_a_part_of_a_deviation_is_fused_by_the_weights_of_the_whole():
    # A view whose rim reads no depth states that the rim costs nothing; it counts no more for that.
    fusion, row, status = Fusion(1, proportional=True), np.array([0]), np.array([int(Status.MEASURED)])
    fusion.extend(1)
    for part in (0.0, 0.08):
        part_std = np.array([part])
        fusion.add(row, status, np.array([[1.0]]), part_std, part_std, weighed_by=np.array([0.1]))
    assert fusion.stds(row)[0] == pytest.approx([0.04])


def test_where_each_view_leaves_half_open_their_readings_are_measured_together():
    # A half ellipsoid, 10 mm wide and 3 mm deep: 2/3 A h. One view reads its left half, the other its right half.
    angles = np.linspace(0.0, 2.0 * pi, 9)[:-1] + 0.1
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    places = 0.005 * np.concatenate([reach * ring for reach in (0.25, 0.5, 0.7, 0.85, 0.93)])
    depths = 0.003 * np.sqrt(1.0 - (places**2).sum(axis=1) / 0.005**2)
    area = pi * 0.005**2
    volume = 2.0 / 3.0 * area * 0.003
    defect_map = DefectMap(MapConfig(), 'map', MeasurementConfig(footprint_ratio=0.0))
    for half, told in ((places[:, 0] < 0.0, 0.8), (places[:, 0] >= 0.0, 1.2)):
        readings = CavityReadings.of_view(
            np.eye(3)[:2], places[half], np.zeros((half.sum(), 2)), depths[half], 2e-5, area
        )
        view = make_measurement(
            0.1,
            area_std_m2=1e-8,
            volume_m3=told * volume,
            volume_std_m3=0.2 * volume,
            volume_systematic_std_m3=0.14 * volume,
            volume_budget=Budget(shape=(0.2 * volume) ** 2 - 2e-20, surface=1e-20, boundary=1e-20),
            readings=readings,
        )
        observe(defect_map, view, camera_x_m=told)
    fused = defect_map.entries[0].measurement
    assert fused.volume_m3 == pytest.approx(volume, rel=0.04)
    assert fused.volume_std_m3 < 0.08 * volume
    assert abs(fused.volume_m3 - volume) < 2.0 * fused.volume_std_m3
    assert fused.volume_systematic_std_m3 > 0.0
    assert fused.volume_upper_bound_m3 == pytest.approx(fused.volume_m3 + 1.645 * fused.volume_std_m3)
    assert fused.readings is None


def test_where_all_views_leave_half_open_their_volumes_are_averaged():
    # The half ellipsoid again, read on its left half only, whose floor says nothing of the other.
    reach, angle = np.meshgrid([0.25, 0.5, 0.7, 0.85, 0.93], np.linspace(0.5 * pi, 1.5 * pi, 9))
    places = 0.005 * np.column_stack([(reach * np.cos(angle)).ravel(), (reach * np.sin(angle)).ravel()])
    depths = 0.003 * np.sqrt(1.0 - (places**2).sum(axis=1) / 0.005**2)
    area = pi * 0.005**2
    readings = CavityReadings.of_view(np.eye(3)[:2], places, np.zeros_like(places), depths, 2e-5, area)
    fused = []
    for kept in (readings, None):
        defect_map = DefectMap(MapConfig())
        for volume in (100e-9, 120e-9):
            view = make_measurement(
                0.1,
                area_std_m2=1e-8,
                volume_m3=volume,
                volume_std_m3=0.2 * volume,
                volume_systematic_std_m3=0.14 * volume,
                volume_budget=Budget(shape=(0.2 * volume) ** 2 - 1e-20, surface=1e-20),
                readings=kept,
            )
            observe(defect_map, view)
        fused.append(defect_map.entries[0].measurement)
    assert fused[0].volume_m3 == pytest.approx(110e-9)
    assert fused[0].volume_std_m3 == fused[1].volume_std_m3


def test_one_measured_view_outweighs_any_number_of_unmeasured_ones():
    unmeasured = {'volume_status': Status.BELOW_DETECTION_LIMIT, 'volume_m3': nan, 'volume_std_m3': nan}
    defect_map = DefectMap(MapConfig())
    for _ in range(3):
        observe(defect_map, make_measurement(0.1, volume_upper_bound_m3=9e-7, reason='too shallow', **unmeasured))
    fused = defect_map.entries[0].measurement
    assert fused.volume_status is Status.BELOW_DETECTION_LIMIT
    assert np.isnan(fused.volume_m3)
    assert fused.volume_upper_bound_m3 == pytest.approx(9e-7)
    assert fused.reason == 'too shallow'
    observe(defect_map, make_measurement(0.1, volume_m3=2e-7))
    fused = defect_map.entries[0].measurement
    assert (fused.volume_status, fused.reason) == (Status.MEASURED, '')
    assert fused.volume_m3 == pytest.approx(2e-7)
    assert fused.volume_upper_bound_m3 == pytest.approx(2e-7 + 1.645 * 1e-8)  # the bound of the fused value


def test_volumes_with_and_without_the_shape_prior_are_averaged_by_information():
    # Deviations of 10 and 20 %: weights 1 and 1/4, so (1 * 10 + 0.25 * 15) / 1.25 = 11 mm3, in either order.
    measured = make_measurement(0.1, volume_m3=10e-9, volume_std_m3=1e-9, volume_systematic_std_m3=0.0, point_count=50)
    guessed = make_measurement(
        0.1,
        volume_status=Status.SHAPE_PRIOR,
        volume_m3=15e-9,
        volume_std_m3=3e-9,
        volume_systematic_std_m3=1.8e-9,
        point_count=10,
        reason='part of the depth comes from the shape prior',
    )
    for views in ([measured, guessed], [guessed, measured]):
        defect_map = DefectMap(MapConfig())
        for view in views:
            observe(defect_map, view)
        fused = defect_map.entries[0].measurement
        assert (fused.volume_status, fused.reason, fused.point_count) == (Status.MEASURED, '', 60)
        assert fused.volume_m3 == pytest.approx(11e-9)
        # White parts 1 and 2.4 average out, the shared 1.8 of the one that has it counts by its weight.
        systematic = 0.25 * 1.8e-9 / 1.25
        assert fused.volume_systematic_std_m3 == pytest.approx(systematic)
        assert fused.volume_std_m3 == pytest.approx(
            sqrt((1.0**2 + (0.25 * 2.4) ** 2) * 1e-18 / 1.25**2 + systematic**2)
        )
        assert fused.volume_upper_bound_m3 == pytest.approx(fused.volume_m3 + 1.645 * fused.volume_std_m3)


def test_a_view_cut_by_the_border_is_recognised_but_does_not_spoil_the_size():
    whole = make_measurement(0.1, diameter_m=0.020)
    half = make_measurement(
        0.105, diameter_m=0.008, area_status=Status.CUT_BY_BORDER, volume_status=Status.CUT_BY_BORDER
    )
    for views in ([whole, half], [half, whole]):
        defect_map = DefectMap(MapConfig(gate_m=0.001))
        assert [observe(defect_map, view) for view in views] == [[1], [1]]
        fused = defect_map.entries[0].measurement
        assert fused.area_status is Status.MEASURED
        assert fused.equivalent_diameter_m == pytest.approx(0.020)
        assert fused.position == pytest.approx(whole.position)
        assert defect_map.entries[0].observations == 2


def test_touching_airholes_drawn_as_one_in_some_views_are_listed_once():
    pair = [make_measurement(0.100), make_measurement(0.1102)]
    area_m2 = pi * 0.010**2 / 2
    outline = np.concatenate([one.outline for one in pair])
    joined = make_measurement(0.1051, diameter_m=2 * sqrt(area_m2 / pi), major_axis_m=0.0202, outline=outline)
    defect_map = DefectMap(MapConfig(gate_m=0.0005))
    for _ in range(5):
        assert observe(defect_map, joined) == [1]
    assert observe(defect_map, *pair) == [2, 3]
    # One view of six is too little to say that the other five were wrong.
    assert [entry.defect_id for entry in defect_map.entries] == [1]
    assert observe(defect_map, *pair) == [2, 3]
    assert [entry.defect_id for entry in defect_map.entries] == [2, 3]
    assert defect_map.placed_ids == {2, 3}
    assert sum(entry.measurement.area_m2 for entry in defect_map.entries) == pytest.approx(area_m2)
    for _ in range(5):
        assert observe(defect_map, joined) == [1]
    assert [entry.defect_id for entry in defect_map.entries] == [1]


def test_a_part_that_a_few_views_cut_off_the_whole_is_not_listed():
    defect_map = DefectMap(MapConfig(gate_m=0.0005))
    for _ in range(3):
        assert observe(defect_map, make_measurement(0.1, diameter_m=0.020)) == [1]
    parted = make_measurement(0.0995, diameter_m=0.018), make_measurement(0.1075, diameter_m=0.006)
    assert observe(defect_map, *parted) == [1, 2]
    assert [entry.defect_id for entry in defect_map.entries] == [1]
    for _ in range(2):
        assert observe(defect_map, *parted) == [1, 2]
    # Three views of six.
    assert [entry.defect_id for entry in defect_map.entries] == [1, 2]


def test_a_small_airhole_beside_a_large_one_stays():
    defect_map = DefectMap(MapConfig(gate_m=0.0005))
    for _ in range(3):
        observe(defect_map, make_measurement(0.1, diameter_m=0.020), make_measurement(0.1085, diameter_m=0.003))
    assert [entry.defect_id for entry in defect_map.entries] == [1, 2]


def test_without_a_place_every_view_is_an_entry_of_its_own_in_the_camera_frame():
    nowhere = Measurement.unknown(Status.NO_POINTS, 'no range return around the rim')
    defect_map = DefectMap(MapConfig())
    assert observe(defect_map, nowhere, make_measurement(0.1)) == [1, 2]
    assert observe(defect_map, make_measurement(0.1), nowhere) == [2, 3]
    assert [entry.frame_id for entry in defect_map.entries] == [CAMERA, 'map', CAMERA]
    assert np.isnan(defect_map.entries[0].measurement.position).all()

    untied = DefectMap(MapConfig())
    for expected in ([1], [2]):
        assert untied.add([make_defect(make_measurement(0.1))], None, 0, CAMERA) == expected
    assert untied.entries[1].measurement.position == pytest.approx([0.1, 0.0, 0.5])


def test_clear_starts_again_from_one():
    defect_map = DefectMap(MapConfig())
    observe(defect_map, make_measurement(0.1))
    defect_map.clear()
    assert defect_map.entries == []
    assert observe(defect_map, make_measurement(0.4)) == [1]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), drift_m=st.floats(0.0, 0.003))
def test_a_grid_of_airholes_seen_in_any_order_is_counted_once_despite_drift(seed: int, drift_m: float):
    generator = np.random.default_rng(seed)
    grid = [(0.03 * column, 0.03 * row) for row in range(4) for column in range(5)]
    defect_map = DefectMap(MapConfig())
    for _ in range(4):
        shift = drift_m * generator.uniform(-1, 1, 2)
        seen = generator.permutation(len(grid))[: generator.integers(1, len(grid))]
        places = [np.array(grid[index]) + shift for index in seen]
        ids = observe(defect_map, *(make_measurement(*place) for place in places))
        assert len(set(ids)) == len(ids)
        for place, defect_id in zip(places, ids, strict=True):
            fused = defect_map.entries[defect_id - 1].measurement.position[:2]
            assert np.linalg.norm(fused - place) < 0.010
    assert len(defect_map.entries) <= len(grid)
