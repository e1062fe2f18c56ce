"""Stores the large matrices of a graph as int8, one scale per output channel.

Symmetric, round to nearest (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2, weights only). OpenVINO then quantises the activations of
those products on the fly, in groups. Accuracy must be checked on data afterwards; packaging does.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

__all__ = ["quantise_weights"]

MIN_ELEMENTS = 10_000


def quantise_weights(graph: ov.Model) -> int:
    """Replaces the weights of matrix products in place and returns how many were replaced."""
    replaced = 0
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weights = node.input_value(1).get_node()
        if weights.get_type_name() != "Constant" or weights.get_output_size() != 1:
            continue
        values = weights.data
        if values.ndim != 2 or values.size < MIN_ELEMENTS:  # noqa: PLR2004
            continue
        transposed = node.get_attributes().get("transpose_b", False)
        scale = np.maximum(np.abs(values).max(axis=1 if transposed else 0, keepdims=True) / 127, 1e-12)
        small = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        wide = ops.convert(ops.constant(small, ov.Type.i8), "f32")
        node.input(1).replace_source_output(ops.multiply(wide, ops.constant(scale.astype(np.float32))).output(0))
        replaced += 1
    graph.validate_nodes_and_infer_types()
    return replaced
