"""Cells of 2x2 pixels."""

from __future__ import annotations

import numpy as np

from cmml_ros.model.cells import pack_cells, unpack_cells


def test_a_cell_holds_its_pixels_and_what_range_says_there():
    image = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    maps = np.zeros((3, 1, 2), np.float32)
    maps[:, 0, 1] = 12.0 / 127.0, 1.0, 0.25
    cells = pack_cells(image, maps)
    assert cells.shape == (3, 4, 16)
    np.testing.assert_array_equal(cells[1, 1], [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17, 128, 0, 0, 0])
    np.testing.assert_array_equal(cells[1, 2], [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23, 130, 64, 32, 0])
    border = [115] * 12 + [128, 0, 0, 0]
    for edge in (cells[0], cells[2], cells[:, 0], cells[:, 3]):
        np.testing.assert_array_equal(edge, np.broadcast_to(border, edge.shape))


def test_what_is_too_deep_or_scattered_is_clipped():
    maps = np.array([[[-7.0, 7.0]], [[5.0, 5.0]], [[1.0, 1.0]]], np.float32)
    cells = pack_cells(np.zeros((2, 4, 3), np.uint8), maps)
    np.testing.assert_array_equal(cells[1, 1:3, 12:], [[0, 255, 128, 0], [255, 255, 128, 0]])


def test_pictures_that_must_not_be_written_or_are_views_are_packed():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    maps = np.zeros((3, 2, 2), np.float32)
    expected = pack_cells(image, maps)
    wide = np.zeros((4, 6, 3), np.uint8)
    wide[:, 1:5] = image
    np.testing.assert_array_equal(pack_cells(wide[:, 1:5], maps), expected)
    image.flags.writeable = False
    np.testing.assert_array_equal(pack_cells(image, maps), expected)


def test_cells_become_planes():
    probabilities = np.arange(2 * 1 * 8, dtype=np.float32).reshape(2, 1, 8)
    planes = unpack_cells(probabilities)
    np.testing.assert_array_equal(planes[0], [[0, 1], [2, 3], [8, 9], [10, 11]])
    np.testing.assert_array_equal(planes[1], [[4, 5], [6, 7], [12, 13], [14, 15]])
