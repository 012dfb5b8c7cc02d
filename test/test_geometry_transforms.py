"""Laws of rigid transforms, and values that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.errors import ShapeError
from cmml_ros.geometry.transforms import SE3

coordinates = st.floats(-100.0, 100.0)
vectors = st.tuples(coordinates, coordinates, coordinates)
# Below half a turn the axis is unique.
rotation_vectors = st.tuples(*[st.floats(-1.7, 1.7)] * 3)
transforms = st.builds(SE3.from_rotation_vector, rotation_vectors, vectors)
points = st.lists(vectors, min_size=1, max_size=5).map(np.array)


@given(transforms, points)
def test_inverse_brings_points_back(T_a_b, points_b):
    np.testing.assert_allclose(T_a_b.inverse().apply(T_a_b.apply(points_b)), points_b, atol=1e-9)


@given(transforms, transforms, points)
def test_product_is_one_after_the_other(T_a_b, T_b_c, points_c):
    np.testing.assert_allclose((T_a_b @ T_b_c).apply(points_c), T_a_b.apply(T_b_c.apply(points_c)), atol=1e-9)


@given(transforms, points)
def test_distances_are_kept(T_a_b, points_b):
    before = np.linalg.norm(points_b - points_b[0], axis=1)
    points_a = T_a_b.apply(points_b)
    np.testing.assert_allclose(np.linalg.norm(points_a - points_a[0], axis=1), before, atol=1e-9)


@given(transforms)
def test_matrix_quaternion_and_rotation_vector_say_the_same(T_a_b):
    for again in (
        SE3.from_matrix(T_a_b.matrix),
        SE3.from_quaternion(T_a_b.quaternion_xyzw, T_a_b.translation),
        SE3.from_quaternion(-3.0 * T_a_b.quaternion_xyzw, T_a_b.translation),
        SE3.from_rotation_vector(T_a_b.rotation_vector, T_a_b.translation),
    ):
        np.testing.assert_allclose(again.matrix, T_a_b.matrix, atol=1e-12)


@given(transforms, transforms, st.floats(0.0, 1.0))
def test_interpolation_is_the_same_from_both_ends(T_a_b, T_a_c, fraction):
    there, back = T_a_b.interpolate(T_a_c, fraction), T_a_c.interpolate(T_a_b, 1.0 - fraction)
    np.testing.assert_allclose(there.matrix, back.matrix, atol=1e-6)


def test_quarter_turn_about_z():
    T_a_b = SE3.from_quaternion([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)], [1.0, 2.0, 3.0])
    assert T_a_b.apply([1.0, 0.0, 0.0]) == pytest.approx([1.0, 3.0, 3.0])
    half = SE3.identity().interpolate(T_a_b, 0.5)
    assert half.rotation_vector == pytest.approx([0.0, 0.0, np.pi / 4])
    assert half.translation == pytest.approx([0.5, 1.0, 1.5])


def test_keeps_its_own_numbers_and_nothing_else():
    matrix = np.eye(4)
    T_a_b = SE3.from_matrix(matrix)
    matrix[0, 3] = 5.0
    assert T_a_b.translation.tolist() == [0.0, 0.0, 0.0]
    turned = SE3.from_quaternion([0.0, 0.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert (turned.rotation.base, turned.translation.base) == (None, None)  # a view keeps all of what it looks at


@pytest.mark.parametrize(
    ('rotation', 'translation', 'message'),
    [
        (np.eye(4), np.zeros(3), r'got \(4, 4\)'),
        (np.eye(3), np.zeros(2), r'\(2,\)'),
        (np.diag([1.0, 1.0, -1.0]), np.zeros(3), 'proper rotation'),
        (2.0 * np.eye(3), np.zeros(3), 'proper rotation'),
        (np.eye(3), np.array([0.0, np.nan, 0.0]), 'finite'),
    ],
)
def test_refuses_what_is_no_rigid_transform(rotation, translation, message):
    with pytest.raises(ShapeError, match=message):
        SE3(rotation, translation)


@pytest.mark.parametrize('quaternion', [[0.0] * 4, [np.nan, 0.0, 0.0, 1.0], [np.inf, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
def test_refuses_what_is_no_quaternion(quaternion):
    with pytest.raises(ShapeError, match='quaternion'):
        SE3.from_quaternion(quaternion, np.zeros(3))


def test_refuses_points_of_another_shape():
    with pytest.raises(ShapeError, match=r'got \(2, 4\)'):
        SE3.identity().apply(np.zeros((2, 4)))
