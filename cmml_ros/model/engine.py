"""The network as a function of arrays, through OpenVINO on the CPU; through torch it is in torch_engine.py."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import openvino
from numpy.typing import NDArray

from cmml_ros.model.cells import pack_cells, unpack_cells
from cmml_ros.model.compiled_cache import find_cache, make_onnx_once
from cmml_ros.model.interface import CELLS, IMAGE, RANGE_MAPS

if TYPE_CHECKING:  # it brings torch, which takes seconds to import
    from cmml_ros.model.network import MultitaskNetwork

# A camera's picture and its two smaller ones need three; more only when several cameras share an engine.
_MAX_COMPILED = 6
# OpenVINO sets the locale of the process to "C" while it compiles, and back to what it was: two at once can leave it at
# "C" for good, where files are no longer read as UTF-8.
COMPILING = threading.Lock()


class Engine(Protocol):
    """The network, ready to run; several threads may ask at once."""

    def __call__(self, image: NDArray[np.uint8], range_maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (2, H, W) of "inside the rim" and "on the rim".

        image: (H, W, 3) BGR, H and W multiples of INPUT_MULTIPLE. range_maps: (3, H / 2, W / 2) of `range_features`.
        """


def compile_properties(threads: int, parallel: int, cache: Path | None) -> dict[str, Any]:
    """How OpenVINO is to compile for the CPU; cache: where it keeps what it made. Others as of OpenVinoEngine."""
    properties: dict[str, Any] = {
        'INFERENCE_PRECISION_HINT': 'f32',
        'NUM_STREAMS': parallel,
        'INFERENCE_NUM_THREADS': threads,
        # Drivers and other nodes need these cores too.
        'ENABLE_CPU_PINNING': False,
    }
    return properties if cache is None else {**properties, 'CACHE_DIR': str(cache)}


class OpenVinoEngine:
    """Engine on the CPU, compiled once per size of the picture.

    load: gives the network, in evaluation mode, when it was not made ready before. threads: 0 for one per core.
    parallel: pictures that are worked on at once, each by its share of the threads; more callers wait.
    precision: int8 or float32; what is not in integers is in float32, also on processors that could do bfloat16:
    results stay the same to 1e-5 wherever they are computed. model_id: under which what takes long is kept for the next
    start, in the user's cache folder; empty: it is not kept.
    """

    def __init__(
        self,
        load: Callable[[], MultitaskNetwork],
        threads: int,
        model_id: str = '',
        precision: str = 'float32',
        parallel: int = 1,
    ) -> None:
        # What its bindings prepare at the first use of numpy locks out two threads that are first together: one holds
        # the interpreter and waits for the preparation, which waits for the interpreter.
        openvino.Tensor(np.zeros(1, np.float32)).element_type.to_dtype()
        cache = find_cache() if model_id else None
        self._core = openvino.Core()
        self._model = self._core.read_model(make_onnx_once(load, model_id, precision, cache))
        self._in_cells = precision == 'int8'
        self._properties = compile_properties(threads, parallel, cache)
        self._parallel = parallel
        self._idle: dict[tuple[int, ...], queue.SimpleQueue[openvino.InferRequest]] = {}  # by the shape of the picture
        self._lock = threading.Lock()

    def __call__(self, image: NDArray[np.uint8], range_maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Engine."""
        inputs: dict[str, NDArray[Any]] = {IMAGE: image, RANGE_MAPS: range_maps}
        if self._in_cells:
            inputs = {CELLS: pack_cells(image, range_maps)}
        with self._lock:
            idle = self._idle.get(image.shape) or self._compile(image.shape, inputs)
        request = idle.get()
        try:
            # Inputs are used where they lie; outputs are copied, since the next call overwrites them.
            results = request.infer(
                {name: array[None] for name, array in inputs.items()}, share_inputs=True, share_outputs=True
            )
            probabilities: NDArray[np.float32] = results[0][0]
            return unpack_cells(probabilities) if self._in_cells else probabilities.copy()
        finally:
            idle.put(request)

    def _compile(
        self, image_shape: tuple[int, ...], inputs: Mapping[str, NDArray[Any]]
    ) -> queue.SimpleQueue[openvino.InferRequest]:
        model = self._model.clone()
        model.reshape({name: [1, *array.shape] for name, array in inputs.items()})
        with COMPILING:
            compiled = self._core.compile_model(model, 'CPU', self._properties)
        idle: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(self._parallel):
            idle.put(compiled.create_infer_request())
        while len(self._idle) >= _MAX_COMPILED:
            del self._idle[next(iter(self._idle))]
        self._idle[image_shape] = idle
        return idle
