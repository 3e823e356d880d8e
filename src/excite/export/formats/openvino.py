"""OpenVINO's intermediate representation: an ``.xml`` file, with its weights in a ``.bin`` file."""

import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from excite.export.deployable import GATE_SCOPE
from excite.export.formats.base import About, Batches, Format, Int8, quantised_scopes
from excite.export.formats.onnx import as_file, to_onnx
from excite.export.origin import KEY, ArtefactMeta
from excite.export.sessions import openvino_core, quiet
from excite.files import to_json


def write(graph: ExportedProgram, path: Path, meta: ArtefactMeta, opset: int) -> None:
    """Write an ``.xml`` file and its ``.bin`` file."""
    import openvino

    with as_file(to_onnx(graph, meta, opset), path) as file:
        converted = openvino.convert_model(file)
    converted.set_rt_info(to_json(meta), [KEY])
    openvino.save_model(converted, path, compress_to_fp16=False)


def quantise(
    fp32: Path,
    out: Path,
    batches: Batches,
    with_gates: bool,
    about: About,
) -> None:
    """Quantise with NNCF's post-training quantisation."""
    import logging

    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino_core().read_model(fp32)
    wanted = quantised_scopes(with_gates)
    ops = model.get_ops()
    floats = [op.get_friendly_name() for op in ops if not op.get_friendly_name().startswith(wanted)]
    if not with_gates:  # a quantised product would take the gate's scale in 8 bits
        floats += [op.get_friendly_name() for op in ops if _takes_a_gates_result(op)]
    data = list(batches())
    scope = nncf.IgnoredScope(names=floats, validate=False)
    with quiet(), redirect_stdout(sys.stderr):  # its progress bars would mix with the output of --json
        quantised = nncf.quantize(
            model, nncf.Dataset(data), subset_size=len(data), ignored_scope=scope, preset=nncf.QuantizationPreset.MIXED
        )
    quantised.set_rt_info(to_json(about(_int8_operators_openvino(quantised))), [KEY])
    openvino.save_model(quantised, out, compress_to_fp16=False)


def _int8_operators_openvino(model: Any) -> Counter[str]:
    """Count the operators of each kind whose first input is rounded to int8 levels."""
    return Counter(
        op.get_type_name()
        for op in model.get_ops()
        if op.get_type_name() != "FakeQuantize"
        and op.inputs()
        and op.input_value(0).get_node().get_type_name() == "FakeQuantize"
    )


def _takes_a_gates_result(op: Any) -> bool:
    sources = (value.get_source_output().get_node() for value in op.inputs())
    return any(source.get_friendly_name().startswith(f"{GATE_SCOPE}/") for source in sources)


FORMAT = Format(
    name="openvino",
    suffix=".xml",
    readers=("openvino",),
    needs=("onnx", "onnxscript", "openvino"),
    write=write,
    int8=Int8(quantiser="nncf", make=quantise),
    beside=(".bin",),
)
