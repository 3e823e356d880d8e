"""The format ONNX, and the ONNX model that other formats are converted from."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from excite.errors import ExciteError
from excite.export.deployable import GATE_SCOPE, INPUT, OUTPUT
from excite.export.formats.base import About, Batches, Format, Int8, quantised_scopes
from excite.export.origin import KEY, ArtefactMeta
from excite.export.sessions import quiet
from excite.files import to_json


def write(graph: ExportedProgram, path: Path, meta: ArtefactMeta, opset: int) -> None:
    """Write a ``.onnx`` file."""
    _save_onnx(to_onnx(graph, meta, opset), path)


def quantise(fp32: Path, out: Path, batches: Batches, with_gates: bool, about: About) -> None:
    """Quantise with ONNX Runtime's static quantisation."""
    import onnx

    _quantise_onnx(fp32, out, batches, with_gates)
    model = onnx.load(out)
    _set_onnx_meta(model, about(_int8_operators_onnx(model, _kinds_onnx(with_gates))))
    onnx.save(model, out)


def to_onnx(graph: ExportedProgram, meta: ArtefactMeta, opset: int) -> Any:
    """Convert an exported program to an ``onnx.ModelProto`` that contains ``meta``."""
    with quiet():
        program = torch.onnx.export(
            graph, dynamo=True, opset_version=opset, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert program is not None
    model = program.model_proto
    for value, names in ((model.graph.input[0], ("N", "H", "W")), (model.graph.output[0], ("N",))):
        for dim, letter in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if dim.dim_param:
                dim.dim_param = letter
    for node in (
        model.graph.node
    ):  # its name says which part it belongs to; the notes about PyTorch's graph are 9/10 of the size
        scope = next((p.value for p in node.metadata_props if p.key == "namespace"), "")
        part = GATE_SCOPE if f".{GATE_SCOPE}:" in scope else "network" if "/net: " in scope else "preprocessing"
        node.name = f"{part}/{node.name}"
    _strip(model.graph)
    _set_onnx_meta(model, meta)
    return model


def _set_onnx_meta(model: Any, meta: ArtefactMeta) -> None:
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, to_json(meta)
    model.producer_name, model.producer_version = "excite", meta["export"]["versions"]["excite"]


def _int8_operators_onnx(model: Any, kinds: Collection[str]) -> Counter[str]:
    """Count the operators of these kinds that the runtime can run in int8: all their inputs are dequantised.

    A float operator after an int8 one (a gate that squeezes its map) also has a dequantised input, but it has weights
    or another input in float, or its result is not quantised.
    """
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    quantised = {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    computed = {output for node in model.graph.node if node.op_type != "Constant" for output in node.output}

    def in_int8(node: Any) -> bool:
        maps = [name for name in node.input if name in computed]
        weighted = node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in dequantised
        return bool(maps) and all(m in dequantised for m in maps) and (weighted or node.output[0] in quantised)

    return Counter(node.op_type for node in model.graph.node if node.op_type in kinds and in_int8(node))


def _strip(graph: Any) -> None:
    """Remove the exporter's notes, which contain local file names, from a graph and its subgraphs."""
    del graph.metadata_props[:]
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del value.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)


def _save_onnx(model: Any, path: Path) -> None:
    import onnx

    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExciteError("this network exceeds the 2 GiB that an ONNX file can hold; choose another format")
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextmanager
def as_file(model: Any, near: Path) -> Iterator[Path]:
    """The model as a temporary ``.onnx`` file next to ``near``."""
    file = near.with_suffix(".converting.onnx")
    _save_onnx(model, file)
    try:
        yield file
    finally:
        file.unlink()


def _kinds_onnx(with_gates: bool) -> list[str]:
    # ReLU, sum and pooling between quantised layers are included: otherwise each costs a conversion to float and back.
    # The product with the gate's scale belongs to the gate: quantised, it would take the scale in 8 bits.
    kinds = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "Add", "MaxPool"]
    return [*kinds, "Mul", "Sigmoid", "ReduceMean"] if with_gates else kinds


def _quantise_onnx(fp32: Path, out: Path, batches: Batches, with_gates: bool) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.left, None)
            return None if images is None else {INPUT: images}

    nodes = onnx.load(fp32, load_external_data=False).graph.node
    wanted = quantised_scopes(with_gates)
    with quiet():
        quantize_static(
            fp32,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_kinds_onnx(with_gates),
            nodes_to_exclude=[node.name for node in nodes if not node.name.startswith(wanted)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    onnx.checker.check_model(str(out))


FORMAT = Format(
    name="onnx",
    suffix=".onnx",
    readers=("onnxruntime", "openvino", "onnx"),
    needs=("onnx", "onnxscript", "onnxruntime"),
    write=write,
    int8=Int8(quantiser="onnxruntime", make=quantise),
)
