"""What the network and all that runs it agree on; without torch, which takes seconds to import."""

from __future__ import annotations

# Inputs and output of the segmentation, as an exported model names them.
IMAGE, RANGE_MAPS, PROBABILITIES = 'image', 'range_maps', 'probabilities'
# Height and width of the input are padded to a multiple of this.
INPUT_MULTIPLE = 16
