"""Exports a trained classifier as one OpenVINO graph: encoder, mean pooling and head, any batch, any length.

Its outputs are the logits and the pooled embedding, which is computed on the way anyway.

The graph takes texts packed into rows (`models.engines.packing`): attention is masked to within a text and
pooling is a matrix product, so nothing is padded to the longest text. Encoders that take no position ids or
no 4-D mask give other numbers that way; the export compares with the plain module and falls back to one
text per row. Needs torch and transformers; never imported by serving.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import openvino as ov
import torch
from torch import Tensor, nn

from leitstand.errors import PermanentBackendError
from leitstand.files import atomic_dir, write_text
from models.encoder import TextEncoderClassifier, load_classifier_module
from models.engines.ir import Export, ir_folder, is_current, source_digest
from models.engines.packing import Packed, pack
from models.engines.quantise import quantise_weights

__all__ = ["ensure_graph"]

TOLERANCE = 1e-3
INPUTS = ("input_ids", "position_ids", "segments", "order")
SAMPLE = [list(range(5, 5 + length)) for length in (9, 4, 6, 3)]


class _PackedGraph(nn.Module):
    def __init__(self, module: TextEncoderClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, segments: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        mask = (segments.unsqueeze(1) == segments.unsqueeze(2)).unsqueeze(1)
        hidden = self.module.encoder(input_ids=input_ids, attention_mask=mask, position_ids=position_ids)[0]
        pooled = _pool(hidden, segments, order)
        return self.module.head(pooled), pooled


class _RowGraph(nn.Module):
    """For encoders that cannot take packed rows: one text per row."""

    def __init__(self, module: TextEncoderClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, segments: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.module.encoder(input_ids=input_ids, attention_mask=(segments >= 0).long())[0]
        pooled = _pool(hidden, segments, order)
        return self.module.head(pooled), pooled


def _pool(hidden: Tensor, segments: Tensor, order: Tensor) -> Tensor:
    """Mean over the tokens of each text: (n, hidden)."""
    belongs = (segments.reshape(1, -1) == order.unsqueeze(1)).to(hidden.dtype)
    return (belongs @ hidden.reshape(-1, hidden.shape[-1])) / belongs.sum(1, keepdim=True)


def ensure_graph(model_dir: Path, precision: str = "fp32") -> Path:
    """The folder of the graph of these weights; exports it when there is none, or one of other weights.

    It lies beside the model's folder, or in a temporary one when nothing can be written there.

    Raises:
        PermanentBackendError: OpenVINO cannot convert the encoder.
    """
    folder = ir_folder(model_dir, precision)
    if is_current(model_dir, folder):
        return folder
    module, _ = load_classifier_module(model_dir)
    try:
        _export(module, model_dir, folder, precision)
    except PermissionError:
        folder = ir_folder(Path(tempfile.mkdtemp(prefix="leitstand-")) / "model", precision)
        _export(module, model_dir, folder, precision)
    return folder


def _export(module: TextEncoderClassifier, model_dir: Path, folder: Path, precision: str) -> None:
    packed = _takes_packed_rows(module)
    with atomic_dir(folder) as part:
        graph = _convert(_PackedGraph(module) if packed else _RowGraph(module), packed)
        if precision == "int8":
            quantise_weights(graph)
        ov.save_model(graph, part / "model.xml", compress_to_fp16=False)
        export = Export(
            source=source_digest(model_dir) or "",
            packed=packed,
            weights="int8" if precision == "int8" else "fp32",
            openvino=ov.__version__,
            bin_bytes=(part / "model.bin").stat().st_size,
        )
        write_text(part / "export.json", export.model_dump_json(indent=1))


def _takes_packed_rows(module: TextEncoderClassifier) -> bool:
    rows, single = pack(SAMPLE, row_tokens=12), pack(SAMPLE, row_tokens=0)
    with torch.inference_mode():
        plain = module(torch.from_numpy(single.input_ids), torch.from_numpy((single.segments >= 0).astype("int64")))
        try:
            packed, _ = _PackedGraph(module)(*_tensors(rows))
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
    return bool(torch.allclose(plain, packed, atol=TOLERANCE))


def _tensors(packed: Packed) -> tuple[Tensor, ...]:
    return tuple(
        torch.from_numpy(array) for array in (packed.input_ids, packed.position_ids, packed.segments, packed.order)
    )


def _convert(graph: nn.Module, packed: bool) -> ov.Model:
    """Traces the module with both axes of the rows and the number of texts left open."""
    values: dict[str, Tensor] = dict(zip(INPUTS, _tensors(pack(SAMPLE, row_tokens=12)), strict=True))
    if not packed:
        del values["position_ids"]
    shapes = [(name, [-1] * value.ndim, ov.Type.i64) for name, value in values.items()]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the tracer warns about every shape that transformers compares
            return ov.convert_model(graph.eval(), example_input=values, input=shapes)
    except Exception as error:
        raise PermanentBackendError(
            f"OpenVINO cannot convert this encoder: {error}", hint="serve it with engine: torch"
        ) from error
    finally:
        logger.setLevel(level)
