import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cmml_ros.errors import SceneError, ShapeError
from cmml_ros.simulation.cavity import make_airhole, make_tie_hole
from cmml_ros.simulation.scene import make_scene
from cmml_ros.simulation.wall import Wall


@pytest.fixture(scope='module', params=['plane', 'column', 'tunnel'])
def scene(request):
    return make_scene(request.param, seed=5, width_m=0.6, height_m=0.4)


def rays_along_normal(scene, developed):
    normals = scene.wall.normals(developed)
    return scene.cast(scene.wall.points(developed) + 0.1 * normals, -normals)


@pytest.mark.parametrize('depth_ratio', [0.1, 0.3, 0.5])
def test_a_spherical_cap_has_the_volume_of_the_closed_formula(depth_ratio):
    a, h = 0.005, 0.010 * depth_ratio
    cap = make_airhole('cap', 0.010, depth_ratio, None)
    seen, entire = cap.volumes(0.0)
    assert seen == entire == pytest.approx(math.pi * h * (3 * a * a + h * h) / 6, rel=1e-3)
    assert cap.rim_area_m2 == pytest.approx(math.pi * a * a)
    assert cap.depth_max_m == pytest.approx(h)


def test_a_cap_of_an_ellipsoid_has_the_volume_of_the_sphere_it_is_a_stretched_copy_of():
    a, h = 0.006, 0.003
    assert make_airhole('ellipsoid', 2 * a, h / (2 * a), None).volumes(0.0)[0] == pytest.approx(
        math.pi * h * (3 * a * a + h * h) / 6, rel=1e-3
    )


def test_a_bubble_cut_above_its_equator_hides_void_below_its_rim():
    a, h = 0.005, 0.008
    radius = (a * a + h * h) / (2 * h)
    below = 2 * math.pi / 3 * (radius**3 - (radius**2 - a * a) ** 1.5) + math.pi * a * a * (h - radius)
    seen, entire = make_airhole('cap', 2 * a, h / (2 * a), None).volumes(0.0)
    assert entire == pytest.approx(math.pi * h * (3 * a * a + h * h) / 6, rel=1e-3)
    assert seen == pytest.approx(below, rel=1e-3)


@pytest.mark.parametrize('shape', ['irregular', 'undercut'])
def test_one_floor_lies_below_a_ragged_rim(shape):
    rng = np.random.default_rng(0)
    for _ in range(30):
        hole = make_airhole(shape, 0.008, rng.uniform(0.3, 1.2), rng)
        triangles = shapely.polygons(hole.vertices[hole.faces][:, :, :2])
        floor = triangles[[triangle.exterior.is_ccw for triangle in triangles]]
        seen = shapely.area(shapely.intersection(shapely.Polygon(hole.rim), floor)).sum()
        assert seen == pytest.approx(hole.rim_area_m2, rel=1e-3)


def test_the_column_below_a_surface_element_tapers_with_curvature():
    # Straight walls along the normals of a column of radius R: area times (h - h^2 / 2R), a piece of a ring.
    hole = make_tie_hole(0.020, 0.030, taper=1.0)
    assert hole.volumes(1 / 0.3)[0] == pytest.approx(hole.rim_area_m2 * (0.030 - 0.030**2 / 0.6))
    assert hole.volumes(0.0)[0] == pytest.approx(hole.rim_area_m2 * 0.030)


@given(
    st.sampled_from([('plane', math.inf), ('column', 0.4), ('tunnel', 2.5)]),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.69),
    st.floats(0.0, 0.05),
)
def test_developing_inverts_placing(kind, s, t, depth_m):
    wall = Wall(kind[0], 1.0, 0.7, kind[1])
    point = wall.points(np.array([[s, t]]), np.array([depth_m]))
    np.testing.assert_allclose(wall.develop(point), [[s, t]], atol=1e-12)
    surface = wall.points(np.array([[s, t]]))
    np.testing.assert_allclose(surface - depth_m * wall.normals([[s, t]]), point, atol=1e-12)
    distance = wall.intersect(surface + 0.2 * wall.normals([[s, t]]), -wall.normals([[s, t]]))
    assert distance == pytest.approx(0.2)


def test_curved_walls_touch_the_plane_in_the_middle_and_keep_lengths():
    column, tunnel = Wall('column', 1.0, 0.7, 0.5), Wall('tunnel', 1.0, 0.7, 3.0)
    for wall in (column, tunnel):
        np.testing.assert_allclose(wall.points([[0.5, 0.35]]), [[0.5, 0.0, 0.35]], atol=1e-12)
    quarter = column.points([[0.5 + 0.5 * math.pi / 2 - 1e-12, 0.0]])
    np.testing.assert_allclose(quarter, [[1.0, 0.5, 0.0]], atol=1e-9)
    assert tunnel.points([[0.5, 0.7]])[0, 1] < 0 < column.points([[1.0, 0.35]])[0, 1]


def test_rays_see_exactly_the_truth(scene):
    for hole in scene.holes[:: len(scene.holes) // 6]:
        rim = scene.wall.develop(hole.rim)
        low, high = rim.min(axis=0), rim.max(axis=0)
        n = 250
        steps = (np.arange(n) + 0.5) / n
        s, t = np.meshgrid(*(low + np.outer(steps, high - low)).T)
        cell = np.prod((high - low) / n)
        hits = rays_along_normal(scene, np.stack([s.ravel(), t.ravel()], axis=1))
        depth = (hits.distance_m - 0.1)[hits.surface_id == hole.id]
        assert len(depth) * cell == pytest.approx(hole.area_m2, rel=5e-3)
        assert np.sum(depth - scene.wall.curvature_per_m / 2 * depth**2) * cell == pytest.approx(
            hole.volume_m3, rel=5e-3
        )
        assert depth.max() == pytest.approx(hole.depth_max_m, rel=0.02)


def test_the_rim_keeps_its_area_and_length_on_a_curved_wall():
    scene = make_scene('column', seed=2, width_m=0.5, height_m=0.4, radius_m=0.3)
    for hole in scene.holes:
        fan = hole.rim - hole.centre
        area = np.linalg.norm(np.cross(fan, np.roll(fan, -1, axis=0)), axis=1).sum() / 2
        assert area == pytest.approx(hole.area_m2, rel=3e-3)
        assert hole.equivalent_diameter_m == pytest.approx(2 * math.sqrt(hole.area_m2 / math.pi))
        np.testing.assert_allclose(np.hypot(hole.rim[:, 0] - 0.25, hole.rim[:, 1] - 0.3), 0.3, atol=1e-12)


def test_truth_is_consistent(scene):
    assert [hole.id for hole in scene.holes] == list(range(1, len(scene.holes) + 1))
    assert {hole.shape for hole in scene.holes} == {'cap', 'ellipsoid', 'irregular', 'undercut'}
    for hole in scene.holes:
        assert 0.0019 < hole.equivalent_diameter_m < 0.0301
        assert hole.minor_axis_m <= hole.major_axis_m
        # Of all shapes of one area an ellipse has the least moments.
        assert hole.major_axis_m * hole.minor_axis_m > 0.999 * hole.equivalent_diameter_m**2
        assert hole.void_volume_m3 >= hole.volume_m3 * (1 - 1e-6)
        assert hole.volume_m3 < hole.area_m2 * hole.depth_max_m
        rim = shapely.Polygon(scene.wall.develop(hole.rim))
        assert rim.is_valid
        assert rim.exterior.is_ccw
        assert rim.area == pytest.approx(hole.area_m2)
    assert any(h.void_volume_m3 > 1.1 * h.volume_m3 for h in scene.holes if h.shape == 'undercut')


def test_rims_are_disjoint_and_touching_pairs_keep_a_thin_wall():
    gaps = []
    for seed in range(3):
        scene = make_scene('plane', seed=seed, width_m=0.5, height_m=0.5)
        rims = np.array([shapely.Polygon(scene.wall.develop(hole.rim)) for hole in scene.holes])
        tree = shapely.STRtree(rims)
        for index, rim in enumerate(rims):
            near = tree.query(rim, 'dwithin', distance=0.001)
            gaps += [rim.distance(rims[other]) for other in near if other > index]
    assert len(gaps) > 0
    assert min(gaps) > 0.0000999
    assert max(gaps) < 0.000501  # all others keep 1 mm


def test_tie_holes_are_deep_and_no_airholes():
    scene = next(
        scene
        for scene in (make_scene('plane', seed=seed, width_m=0.4, height_m=0.4, airhole_count=3) for seed in range(20))
        if any(distractor.kind == 'tie_hole' for distractor in scene.distractors)
    )
    tie_hole = next(distractor for distractor in scene.distractors if distractor.kind == 'tie_hole')
    hits = rays_along_normal(scene, tie_hole.outline_developed.mean(axis=0, keepdims=True))
    assert hits.surface_id.tolist() == [0]
    assert 0.0019 < hits.distance_m[0] - 0.1 < 0.041


def test_rays_that_miss_say_so():
    scene = make_scene('plane', seed=1, width_m=0.3, height_m=0.3, airhole_count=0, distractor_density=0)
    origins = np.array([[0.1, -1.0, 0.1], [0.1, -1.0, 0.1], [0.1, -1.0, 0.1]])
    hits = scene.cast(origins, np.array([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0], [9.0, 1.0, 0.0]]))
    assert hits.surface_id.tolist() == [0, -1, -1]
    assert hits.distance_m.tolist() == [1.0, math.inf, math.inf]
    np.testing.assert_allclose(hits.developed[0], [0.1, 0.1])
    assert np.isnan(hits.developed[1:]).all()
    with pytest.raises(ShapeError, match=r'\(3, 3\) and \(2, 3\)'):
        scene.cast(origins, origins[:2])


def test_the_same_seed_gives_the_same_scene():
    first, again, other = (make_scene('plane', seed=seed, width_m=0.3, height_m=0.3) for seed in (7, 7, 8))
    assert [hole.volume_m3 for hole in first.holes] == [hole.volume_m3 for hole in again.holes]
    assert [d.kind for d in first.distractors] == [d.kind for d in again.distractors]
    assert [hole.volume_m3 for hole in first.holes] != [hole.volume_m3 for hole in other.holes]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_diameters_stay_in_their_range(seed):
    scene = make_scene('plane', seed, width_m=0.3, height_m=0.3, airhole_count=8, diameter_range_m=(0.004, 0.008))
    assert len(scene.holes) == 8
    assert all(0.004 - 1e-9 <= hole.equivalent_diameter_m <= 0.008 + 1e-9 for hole in scene.holes)


def test_what_cannot_be_built_says_why():
    with pytest.raises(SceneError, match='no room left'):
        make_scene('plane', 0, width_m=0.1, height_m=0.1, airhole_count=200)
    with pytest.raises(SceneError, match='unknown kind of wall "sphere"'):
        make_scene('sphere', 0)
    with pytest.raises(SceneError, match='do not fit round a column'):
        make_scene('column', 0, width_m=3.0, radius_m=0.3)
    with pytest.raises(SceneError, match='diameter_range_m'):
        make_scene('plane', 0, diameter_range_m=(0.01, 0.002))
