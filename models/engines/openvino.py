"""Runs an exported classifier on CPUs with OpenVINO. Imports neither torch nor transformers.

One stream per thread: independent single-threaded batches share no barrier, so a core that the HTTP
process borrows slows one batch and not all of them.
"""

import queue
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from leitstand.errors import ConfigurationError, IntegrityError
from models.engines.cpus import available_cpus
from models.engines.ir import read_export
from models.engines.packing import ROW_TOKENS, pack

__all__ = ["OpenVinoEngine", "has_native_bf16"]

FloatArray = npt.NDArray[np.float32]


def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """Logits of token ids. Safe to call from several threads; `concurrency` calls run at the same time.

    Args:
        folder: The exported graph (`models.engines.ir`).
        precision: ``fp32``, ``bf16`` (falls back to fp32 without hardware for it) or ``int8``.
        threads: Compute threads; 0 means one per available CPU.

    Raises:
        IntegrityError: The graph cannot be read.
        ConfigurationError: Unknown precision.
    """

    name = "openvino"

    def __init__(self, folder: Path, *, precision: str = "fp32", threads: int = 0) -> None:
        if precision not in ("fp32", "bf16", "int8"):
            raise ConfigurationError(f"OpenVINO has no precision '{precision}'", hint="use fp32, bf16 or int8")
        export = read_export(folder)
        self.concurrency = threads or available_cpus()
        self.precision = "fp32" if precision == "bf16" and not has_native_bf16() else precision
        self._row_tokens = ROW_TOKENS if export.packed else 0
        core = ov.Core()
        try:
            graph = core.read_model(folder / "model.xml")
            self._compiled = core.compile_model(graph, "CPU", self._options())
        except RuntimeError as error:
            raise IntegrityError(f"OpenVINO cannot load {folder}: {error}", hint="package the version again") from error
        self._inputs = [(port.get_any_name(), port) for port in self._compiled.inputs]
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(self.concurrency):
            self._idle.put(self._compiled.create_infer_request())
        # OpenVINO's binding initialises itself on the first call and deadlocks when two threads make that call at
        # once (a static-init guard against the interpreter lock, seen with 2026.4.1), so the first call is ours.
        for _ in range(self.concurrency):
            self.run([[0, 0]])

    def run(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Logits (n, labels) of one batch. Blocks without holding the interpreter lock."""
        return self._infer(ids, (0,))[0]

    def run_with_embedding(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, FloatArray]:
        """Logits (n, labels) and pooled embeddings (n, hidden) of one batch, as `run`."""
        logits, embedding = self._infer(ids, (0, 1))
        return logits, embedding

    def _infer(self, ids: Sequence[Sequence[int]], outputs: Sequence[int]) -> list[FloatArray]:
        packed = pack(ids, row_tokens=self._row_tokens)
        request = self._idle.get()
        try:
            request.infer({port: getattr(packed, name) for name, port in self._inputs}, share_inputs=True)
            return [request.get_output_tensor(output).data.copy() for output in outputs]
        finally:
            self._idle.put(request)

    def _options(self) -> dict[str, object]:
        bf16 = self.precision == "bf16" or (self.precision == "int8" and has_native_bf16())
        return {
            "NUM_STREAMS": self.concurrency,
            "INFERENCE_NUM_THREADS": self.concurrency,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "ENABLE_CPU_PINNING": False,
        }
