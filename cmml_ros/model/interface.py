"""What the network and all that runs it agree on; without torch, which takes seconds to import."""

from __future__ import annotations

# Inputs and outputs, as exported models name them: of the segmentation,
IMAGE, RANGE_MAPS, PROBABILITIES = 'image', 'range_maps', 'probabilities'
# of the same in 8 bits, by cells of 2x2 pixels,
CELLS, CELL_PROBABILITIES = 'cells', 'cell_probabilities'
# of what a picture is encoded to for matching, maps at 1/4, 1/8 and 1/16 of its size,
PYRAMID = ('quarter', 'eighth', 'sixteenth')
# and of the description of its cells and of the points that are laid on it.
POINT_MAPS, IMAGE_DESCRIPTORS, POINT_DESCRIPTORS, SHARPNESS = (
    'point_maps',
    'image_descriptors',
    'point_descriptors',
    'sharpness',
)
# Height and width of the input are padded to a multiple of this.
INPUT_MULTIPLE = 16
# Matching describes cells of so many pixels, and looks for superpoints, one in each of these larger ones.
FINE_STRIDE = 4
COARSE_STRIDE = 16
