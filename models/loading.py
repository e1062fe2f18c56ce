"""Opens a trained classifier and answers: texts in, labels with calibrated scores out.

All that serving needs of `models`. Which engine computes is a detail behind `Engine`. Training code,
torch and transformers are imported only by the torch engine, or to export a graph that is not there yet
(a Bento always holds its graph).
"""

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from leitstand.errors import ConfigurationError, IntegrityError, MissingExtraError
from models.artifact import ClassifierConfig, read_config, verify
from models.engines.ir import ir_folder, is_current

__all__ = ["Classifier", "Engine", "Predictions", "choose_engine", "open_classifier"]

FloatArray = npt.NDArray[np.float32]

BATCH_TEXTS = 64
BATCH_TOKENS = 1024


class Engine(Protocol):
    """Token ids to logits. Both methods may be called from `concurrency` threads at the same time."""

    name: str
    precision: str
    concurrency: int

    def run(self, ids: Sequence[Sequence[int]]) -> FloatArray: ...

    def run_with_embedding(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, FloatArray]: ...


@dataclass(frozen=True)
class Predictions:
    """Answers for n texts, in the order of the texts.

    Attributes:
        labels: n label names.
        scores: (n,) float32 in [0, 1], the calibrated probability of that label.
        abstain: (n,) bool, the score is below the model's threshold.
        probabilities: (n, labels) float32, calibrated.
    """

    labels: list[str]
    scores: FloatArray
    abstain: npt.NDArray[np.bool_]
    probabilities: FloatArray


class Classifier:
    """A classifier that is open: tokenizer, engine and configuration. Safe to use from several threads."""

    def __init__(self, config: ClassifierConfig, tokenizer: Tokenizer, engine: Engine) -> None:
        self.config = config
        self.backend = engine
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(config.max_tokens)
        self._tokenizer.no_padding()

    @property
    def engine(self) -> str:
        """Name and precision of the engine, like ``openvino bf16``."""
        return f"{self.backend.name} {self.backend.precision}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most `config.max_tokens`."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """Logits (n, labels), not divided by the temperature. Texts are sorted by length internally."""
        ids = self.encode(texts)
        result = np.zeros((len(ids), len(self.config.labels)), np.float32)

        def run(chunk: list[int]) -> None:
            result[chunk] = self.backend.run([ids[index] for index in chunk])

        with ThreadPoolExecutor(self.backend.concurrency, "leitstand-engine") as pool:
            for _ in pool.map(run, _chunks(ids)):
                pass
        return result

    def predict(self, texts: Sequence[str]) -> Predictions:
        """Labels, calibrated scores and abstention for each text."""
        return self.decide(self.logits(texts))

    def decide(self, logits: FloatArray) -> Predictions:
        """Turns logits (n, labels) into answers: softmax of logits / temperature (Guo et al. 2017)."""
        scaled = logits / np.float32(self.config.temperature)
        exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
        probabilities = (exponent / exponent.sum(axis=1, keepdims=True)).astype(np.float32)
        best = probabilities.argmax(axis=1)
        scores = probabilities[np.arange(len(best)), best]
        labels = [self.config.labels[index] for index in best.tolist()]
        return Predictions(labels, scores, scores < self.config.abstain_below, probabilities)


def choose_engine(engine: str = "auto") -> str:
    """``auto`` means torch on a GPU, else OpenVINO."""
    if engine != "auto":
        return engine
    if importlib.util.find_spec("torch") is None:
        return "openvino"
    return "torch" if importlib.import_module("torch").cuda.is_available() else "openvino"


def open_classifier(model_dir: Path, *, engine: str = "auto", precision: str = "fp32", threads: int = 0) -> Classifier:
    """Opens the classifier in `model_dir`, verified against its manifest.

    Args:
        model_dir: As `models.artifact` describes it.
        engine: ``auto``, ``openvino`` or ``torch``.
        precision: ``fp32``; ``bf16``; ``int8`` (OpenVINO only); ``auto``: bf16 where the hardware has it.
        threads: Compute threads; 0 means one per available CPU.

    Raises:
        NotFoundError: There is no classifier.
        IntegrityError: A file is damaged; the message names it.
        ConfigurationError: Unknown engine or precision.
        MissingExtraError: The engine is not installed.
    """
    verify(model_dir)
    config = read_config(model_dir)
    try:
        tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise IntegrityError(f"{model_dir / 'tokenizer.json'} cannot be read: {error}") from error
    chosen = choose_engine(engine)
    if chosen not in ("openvino", "torch"):
        raise ConfigurationError(f"There is no engine '{chosen}'", hint="use auto, openvino or torch")
    if importlib.util.find_spec(chosen) is None:
        raise MissingExtraError(
            f"The engine '{chosen}' is not installed", hint="pip install 'leitstand[serving]' or choose another engine"
        )
    opened = _open_openvino if chosen == "openvino" else _open_torch
    return Classifier(config, tokenizer, opened(model_dir, precision, threads))


def _open_openvino(model_dir: Path, precision: str, threads: int) -> Engine:
    module = importlib.import_module("models.engines.openvino")
    wanted = ("bf16" if module.has_native_bf16() else "fp32") if precision == "auto" else precision
    folder = ir_folder(model_dir, wanted)
    if not is_current(model_dir, folder):
        folder = importlib.import_module("models.export").ensure_graph(model_dir, wanted)
    return module.OpenVinoEngine(folder, precision=wanted, threads=threads)


def _open_torch(model_dir: Path, precision: str, threads: int) -> Engine:
    module = importlib.import_module("models.engines.torch")
    return module.TorchEngine(model_dir, precision="fp32" if precision == "auto" else precision, threads=threads)


def _chunks(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest texts first, so that the last batches are short."""
    chunk: list[int] = []
    tokens = 0
    for index in sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True):
        if chunk and (len(chunk) == BATCH_TEXTS or tokens + len(ids[index]) > BATCH_TOKENS):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(index)
        tokens += len(ids[index])
    if chunk:
        yield chunk
