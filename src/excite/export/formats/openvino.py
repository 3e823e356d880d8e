"""OpenVINO's intermediate representation: an ``.xml`` file, with its weights in a ``.bin`` file."""

import os
import re
import shutil
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from excite.export.deployable import GATE_SCOPE
from excite.export.formats.base import About, Batches, Format, Int8, quantised_scopes, replace_file
from excite.export.formats.onnx import as_file, to_onnx
from excite.export.origin import KEY, ArtefactMeta
from excite.export.sessions import openvino_core, quiet
from excite.files import flush, to_json


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


def replace(final: Path, target: Path) -> None:
    """Move both files over an existing artefact, with weights that fit the old graph and the new one in between.

    Two files cannot be replaced at once, and a graph with the weights of another network would be read without an
    error. But a graph says where in the file each tensor is, so one file can hold the weights of both.
    """
    weights, old = final.with_suffix(".bin"), target.with_suffix(".bin")
    if not (target.is_file() and old.is_file()):
        target.unlink(missing_ok=True)  # a graph without weights, which must not find other ones
        replace_file(weights, old)
        replace_file(final, target)
        return
    size = old.stat().st_size
    shift = -(-max(weights.stat().st_size, size) // _PAGE) * _PAGE
    shifted = final.with_name("shifted.xml")
    shifted.write_bytes(_OFFSET.sub(lambda m: b"%s%d" % (m[1], int(m[2]) + shift), final.read_bytes()))
    flush(shifted)
    old_and_new = _joined(old, weights, shift, final.with_name("old+new.bin"))  # a full disk is met here, not later
    new_and_new = _joined(weights, weights, shift, final.with_name("new+new.bin"))
    try:
        replace_file(old_and_new, old)
        replace_file(shifted, target)  # from here on it is the new network
    except OSError:
        os.truncate(old, size)
        raise
    replace_file(new_and_new, old)
    replace_file(final, target)
    replace_file(weights, old)


_PAGE = 4096
#: In a graph: where a tensor begins in the file of weights, bytes. In attributes, quotation marks are escaped.
_OFFSET = re.compile(rb'(<data\b[^>]*?\boffset=")(\d+)')


def _joined(first: Path, second: Path, shift: int, out: Path) -> Path:
    """``first``, and ``second`` from byte ``shift`` on, flushed to disk."""
    with out.open("wb") as file:
        for source, start in ((first, 0), (second, shift)):
            file.seek(start)
            with source.open("rb") as part:
                shutil.copyfileobj(part, file)
    flush(out)
    return out


FORMAT = Format(
    name="openvino",
    suffix=".xml",
    readers=("openvino",),
    needs=("onnx", "onnxscript", "openvino"),
    write=write,
    int8=Int8(quantiser="nncf", make=quantise),
    beside=(".bin",),
    replace=replace,
)
