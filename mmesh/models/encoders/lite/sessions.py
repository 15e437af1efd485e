"""ONNX graphs ready to run: one small interface over ONNX Runtime and OpenVINO."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mmesh.errors import FailedPrecondition

Backend = Literal["onnxruntime", "openvino"]
Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """A loaded graph; `run` may be called from several threads."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Return every output by name for the inputs by name."""


def open_session(
    graph: Path, backend: Backend, *, threads: int, keep_memory: bool = False
) -> Session:
    """Load an ONNX graph.

    With `keep_memory` ONNX Runtime holds what the largest run took, until nothing has run for ten
    seconds. That spares page faults; for graphs that only ever see small batches.

    Raises:
        FailedPrecondition: the backend is not installed.
    """
    try:
        if backend == "openvino":
            return _OpenVino(graph, threads)
        return _OnnxRuntime(graph, threads, keep_memory)
    except ModuleNotFoundError as error:
        raise FailedPrecondition(f"{error.name} is missing; install it with pip") from None


IDLE_S = 10.0
"""Without a run for so long, a session gives back the memory that it kept."""


class _OnnxRuntime:
    def __init__(self, graph: Path, threads: int, keep_memory: bool) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Waiting threads sleep: the services share their cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = keep_memory
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        self._idle = _Idle(self._shrink) if keep_memory else None

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        values = self._session.run(self._names, dict(inputs))
        if self._idle is not None:
            self._idle.postpone()
        return dict(zip(self._names, values, strict=True))

    def _shrink(self) -> None:
        """Give back what the arena holds, at the end of a run of one picture of nothing."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        inputs = {
            one.name: np.zeros([n if isinstance(n, int) else 1 for n in one.shape], np.float32)
            for one in self._session.get_inputs()
        }
        self._session.run(self._names, inputs, options)


class _Idle:
    """Does something once nothing else has been done for a while, on a thread that then ends."""

    def __init__(self, action: Callable[[], None], pause_s: float = IDLE_S) -> None:
        self._action, self._pause_s = action, pause_s
        self._busy_at = 0.0
        self._waits = threading.Lock()

    def postpone(self) -> None:
        """Note that something was done."""
        self._busy_at = time.monotonic()
        if self._waits.acquire(blocking=False):
            threading.Thread(target=self._wait, name="idle", daemon=True).start()

    def _wait(self) -> None:
        while (left := self._busy_at + self._pause_s - time.monotonic()) > 0:
            time.sleep(left)
        self._waits.release()
        self._action()


class _OpenVino:
    def __init__(self, graph: Path, threads: int) -> None:
        import openvino  # type: ignore[import-untyped]

        # Without the hint OpenVINO computes in bfloat16 where the CPU can; vectors would differ.
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self._model = openvino.Core().compile_model(str(graph), "CPU", settings)
        self._names = [output.get_any_name() for output in self._model.outputs]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        request = self._model.create_infer_request()
        values = request.infer(dict(inputs))
        return {name: np.array(values[name], np.float32) for name in self._names}
