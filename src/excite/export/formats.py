"""The formats: how each is written, opened by its own runtime, and made int8.

Letters: N images, K classes.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from excite.errors import ExciteError, nearest
from excite.export.deployable import GATE_SCOPE, INPUT, OUTPUT
from excite.export.origin import KEY
from excite.files import to_json

#: uint8 or float32 images, as the artefact takes them -> float32 logits (N, K).
Run = Callable[[np.ndarray], np.ndarray]

OPSET = 20
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
RUNTIME = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}
#: The packages that can run a file of the format, its own runtime first; "onnx" has a reference evaluator in NumPy.
READERS = {"onnx": ("onnxruntime", "openvino", "onnx"), "openvino": ("openvino",), "pt2": ("torch",)}
#: The package that makes an artefact int8.
QUANTISER = {"onnx": "onnxruntime", "openvino": "nncf"}
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"), "pt2": ()}


def check(name: str, int8: bool) -> None:
    """Raises ExciteError for an unknown format, one that has no int8, and packages that are not installed."""
    if name not in SUFFIX:
        raise ExciteError(f"there is no format {name!r}{nearest(name, SUFFIX)}; choose one of {', '.join(SUFFIX)}")
    if int8 and name == "pt2":
        raise ExciteError("--int8 is for the formats onnx and openvino; pt2 has none")
    needs = _NEEDS[name] + (("nncf",) if int8 and name == "openvino" else ())
    missing = [package for package in needs if find_spec(package) is None]
    if missing:
        raise ExciteError(f"the format {name} needs {', '.join(missing)}: pip install 'excite[export]'")


def write(name: str, graph: ExportedProgram, path: Path, meta: dict[str, Any], opset: int = OPSET) -> None:
    """Write the artefact (for ``openvino`` a ``.bin`` beside it), with ``meta`` inside."""
    if name == "pt2":
        with _quiet():
            torch.export.save(graph, path, extra_files={f"{KEY}.json": to_json(meta)})
        return
    model = _to_onnx(graph, meta, opset)
    if name == "onnx":
        _save_onnx(model, path)
        return
    import openvino

    with _as_file(model, path) as file:
        converted = openvino.convert_model(file)
    converted.set_rt_info(to_json(meta), [KEY])
    openvino.save_model(converted, path, compress_to_fp16=False)


def open_artefact(name: str, path: Path, threads: int) -> Run:
    """Load an artefact in its own runtime, on the CPU and in float32, with so many threads."""
    return open_in(RUNTIME[name], path, threads)


def open_in(runtime: str, path: Path, threads: int) -> Run:
    """Load an artefact in one of the packages of ``READERS``, as a new session that nothing was run in."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: session.run([OUTPUT], {INPUT: images})[0]
    if runtime == "openvino":
        # Without the hint OpenVINO computes in bfloat16 wherever the processor can.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino_core().compile_model(str(path), "CPU", settings)
        return lambda images: np.array(compiled(images)[OUTPUT])
    if runtime == "onnx":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(path))
        return lambda images: evaluator.run([OUTPUT], {INPUT: images})[0]
    return sessions_of(runtime, path, threads)()


@cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process.

    Each Core's CPU plugin gives the thread a stack for signal handlers, and when it goes puts back the one that it
    found. Of two, the one made last puts back the other's, which is gone: the next signal ends the process without a
    word (OpenVINO 2026.4, where Python's faulthandler is on and any child process ends).
    """
    import openvino

    return openvino.Core()


def sessions_of(runtime: str, path: Path, threads: int) -> Callable[[], Run]:
    """A function that gives a new session of ``open_in`` at every call."""
    if runtime != "torch":
        return partial(open_in, runtime, path, threads)
    with _quiet():
        program = torch.export.load(path)  # takes seconds and runs nothing; each module of it starts anew

    def session() -> Run:
        module = program.module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return run

    return session


def quantise(
    name: str,
    fp32: Path,
    out: Path,
    batches: Callable[[], Iterator[np.ndarray]],
    with_gates: bool,
    about: Callable[[Counter[str]], dict[str, Any]],
) -> None:
    """Make an int8 artefact of a float32 one.

    Convolutions and dense layers get int8 weights (one scale a channel) and int8 inputs; preprocessing stays as it is.

    Args:
        name: ``onnx`` (ONNX Runtime's static quantisation) or ``openvino`` (NNCF's post-training quantisation).
        fp32: the artefact. out: where the other is written.
        batches: gives the calibration images anew at each call, as the artefact takes them.
        with_gates: also the gates.
        about: from how many operators of each kind take int8 inputs to what the artefact says of itself.
    """
    if name == "openvino":
        _quantise_openvino(fp32, out, batches, with_gates, about)
        return
    import onnx

    _quantise_onnx(fp32, out, batches, with_gates)
    model = onnx.load(out)
    _set_onnx_meta(model, about(_int8_operators_onnx(model, _kinds_onnx(with_gates))))
    onnx.save(model, out)


def _to_onnx(graph: ExportedProgram, meta: dict[str, Any], opset: int) -> Any:
    with _quiet():
        program = torch.onnx.export(
            graph, dynamo=True, opset_version=opset, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert program is not None
    model = program.model_proto
    for value, names in ((model.graph.input[0], ("N", "H", "W")), (model.graph.output[0], ("N",))):
        for dim, letter in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if dim.dim_param:
                dim.dim_param = letter
    for node in model.graph.node:  # the name says whose it is; the notes about PyTorch's graph are 9/10 of the rest
        scope = next((p.value for p in node.metadata_props if p.key == "namespace"), "")
        part = GATE_SCOPE if f".{GATE_SCOPE}:" in scope else "network" if "/net: " in scope else "preprocessing"
        node.name = f"{part}/{node.name}"
    _strip(model.graph)
    _set_onnx_meta(model, meta)
    return model


def _set_onnx_meta(model: Any, meta: dict[str, Any]) -> None:
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, to_json(meta)
    model.producer_name, model.producer_version = "excite", meta["export"]["versions"]["excite"]


def _int8_operators_onnx(model: Any, kinds: Collection[str]) -> Counter[str]:
    """How many operators of these kinds the runtime can run in int8: all that they compute with comes dequantised.

    A float operator behind an int8 one (a gate that squeezes its map) sees a dequantised input, too, but has weights or
    another input in float, or a result that is not quantised.
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
    """Drop the exporter's notes, which tell file names of this machine, from a graph and those inside of it."""
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
        raise ExciteError("this network is larger than the 2 GiB that one ONNX file holds; choose another format")
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextmanager
def _as_file(model: Any, near: Path) -> Iterator[Path]:
    file = near.with_suffix(".converting.onnx")
    _save_onnx(model, file)
    try:
        yield file
    finally:
        file.unlink()


def _kinds_onnx(with_gates: bool) -> list[str]:
    # ReLU, sum and pooling between quantised layers: left out, each costs a pass to float and back. The product with
    # the gate's scale is the gate's: quantised, it would take the scale in 8 bits.
    kinds = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "Add", "MaxPool"]
    return [*kinds, "Mul", "Sigmoid", "ReduceMean"] if with_gates else kinds


def _quantise_onnx(fp32: Path, out: Path, batches: Callable[[], Iterator[np.ndarray]], with_gates: bool) -> None:
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
    wanted = ("network/", f"{GATE_SCOPE}/") if with_gates else ("network/",)
    with _quiet():
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


def _quantise_openvino(
    fp32: Path,
    out: Path,
    batches: Callable[[], Iterator[np.ndarray]],
    with_gates: bool,
    about: Callable[[Counter[str]], dict[str, Any]],
) -> None:
    import logging

    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino_core().read_model(fp32)
    wanted = ("network/", f"{GATE_SCOPE}/") if with_gates else ("network/",)
    ops = model.get_ops()
    floats = [op.get_friendly_name() for op in ops if not op.get_friendly_name().startswith(wanted)]
    if not with_gates:  # a quantised product would take the gate's scale in 8 bits
        floats += [op.get_friendly_name() for op in ops if _takes_a_gates_result(op)]
    data = list(batches())
    scope = nncf.IgnoredScope(names=floats, validate=False)
    with _quiet(), redirect_stdout(sys.stderr):  # its progress bars would go between the lines of --json
        quantised = nncf.quantize(
            model, nncf.Dataset(data), subset_size=len(data), ignored_scope=scope, preset=nncf.QuantizationPreset.MIXED
        )
    quantised.set_rt_info(to_json(about(_int8_operators_openvino(quantised))), [KEY])
    openvino.save_model(quantised, out, compress_to_fp16=False)


def _int8_operators_openvino(model: Any) -> Counter[str]:
    """How many operators of each kind have their first input rounded to int8 levels."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of what is none of the user's concern (torchvision is missing, a name will change)."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root", "nncf")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
