"""Grafted networks of other libraries in a file: the weights, and what is needed to put the gates where they were."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from excite.errors import ExciteError, first_line, shown, shown_text
from excite.files import to_json, written_aside
from excite.gates import create_gate, list_gates
from excite.gates.registry import GateTable, model_option_names
from excite.models.base import Classifier
from excite.models.factory import create_model
from excite.models.grafting.core import unwrap, wrap
from excite.models.grafting.places import Place
from excite.models.grafting.wrapper import Grafted
from excite.models.timm_models import PREFIX
from excite.weights.header import GraftHeader, GraftMeta, Meta, Summary, check_arguments, read_header
from excite.weights.locate import GRAFTED

FORMAT_VERSION = 1


def header(meta: Meta, model: Classifier, metrics: Summary | None) -> Meta:
    """The header of a checkpoint whose gates have changed: its model, and the model of its recipe, are the new one.

    ``model``: one of ours, or one of timm's from ``create_model("timm:...")``.
    """
    from excite.runtime.environment import versions

    args = model.model_args
    recipe = meta["recipe"].copy()
    of_gates = {
        "gate",
        "gate_at",
        "gate_position",
        *(option for name in list_gates() for option in model_option_names(name)),
    }
    kept = {k: v for k, v in (recipe["model"].get("options") or {}).items() if k not in of_gates}
    recipe["model"] = {**recipe["model"], "options": {**kept, **{k: v for k, v in args.items() if k in of_gates}}}
    return {
        **meta,
        "model": {"name": model.model_name, "args": args},
        "recipe": recipe,
        "metrics": metrics,
        "trained_as": meta.get("trained_as", meta["model"]),  # no training of that recipe gives these weights
        "versions": versions(),
    }


def save_grafted(model: nn.Module, path: str | Path, source: str = "") -> None:
    """Write a grafted network of another library as one safetensors file (whole or not at all).

    The names of the tensors are those of the ungated network, with ``PLACE.gate.*`` besides.

    Args:
        model: what ``excite.graft`` returned. Our own models are saved as every checkpoint of ours.
        path: the file.
        source: how to build the ungated network again, such as ``timm:resnet50``; "" where :func:`load_grafted` will be
            given it.

    Raises:
        ExciteError: the network has no grafted gates, or the file cannot be written.
    """
    if isinstance(model, Classifier):
        raise ExciteError(f"{model.model_name} is one of ours: its run folders and checkpoints know of its gates")
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, Grafted)}
    if not wrappers:
        raise ExciteError(f"{type(model).__name__} has no grafted gates, so there is nothing to remember of them")
    places = [
        {"name": name, "channels": w.channels, "size": list(w.size), "channels_last": w.channels_last, "spec": w.spec}
        for name, w in wrappers.items()
    ]
    about = {"format_version": FORMAT_VERSION, "source": source, "network": type(model).__name__, "places": places}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_aside(Path(path)) as aside:
        # Weights under two names (tied layers) share their memory, which the format refuses: each gets its own.
        seen: set[int] = set()
        for name, tensor in tensors.items():
            if tensor.data_ptr() in seen:
                tensors[name] = tensor.clone()
            seen.add(tensor.data_ptr())
        save_file(tensors, aside, metadata={"format": "pt", GRAFTED: to_json(about)})


def load_grafted(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network that :func:`save_grafted` wrote, gates in their places, weights loaded.

    Args:
        path: the file.
        model: the network without gates, changed in place; None builds what the file names (timm's models).

    Raises:
        ExciteError: the file is another, or it does not fit the network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(GRAFTED)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ExciteError(f"{path} is not a readable safetensors file: {first_line(error)}") from None
    if text is None:
        raise ExciteError(f"{path} is no grafted network of another library (ours: excite.load)")
    about, places = _read_header(path, text, tensors)
    if model is None:
        if not about["source"].startswith(PREFIX):
            raise ExciteError(
                f"{path} does not say how to build its {shown_text(about['network'])}; give model= without gates"
            )
        model = create_model(about["source"])
    names = {name for name, _ in model.named_modules()}
    for place, _ in places:
        if place.name not in names:
            raise ExciteError(
                f"{path} has a gate behind {shown(place.name)}, which {type(model).__name__} does not have"
            )
    try:
        for place, spec in places:
            wrap(model, place, spec)
        wrong = _misfits(model, tensors)
        if wrong:
            raise ExciteError(f"{path} does not fit {type(model).__name__}: {'; '.join(wrong[:5])}")
    except BaseException:
        unwrap(model)
        raise
    model.load_state_dict(tensors)
    return model


def _read_header(
    path: str | Path, text: str, tensors: Mapping[str, Tensor]
) -> tuple[GraftMeta, list[tuple[Place, GateTable]]]:
    """The header, and its places with the gates' tables, which have the file's tensors.

    Raises:
        ExciteError: it is damaged, of another format, or says something else than the tensors.
    """
    about = read_header(text, path, GraftHeader)
    places: list[tuple[Place, GateTable]] = []
    own: dict[str, torch.Size] = {}
    for entry in about["places"]:
        height, width = entry["size"]
        place = Place(entry["name"], entry["channels"], (height, width), entry["channels_last"])
        spec = dict(entry["spec"])
        check_arguments(path, {"channels": place.channels, **spec}, tensors)
        with torch.device("meta"):  # a gate as large as a map may take more memory than there is
            gate = create_gate(spec, place.channels, feature_size=place.size)
        own |= {f"{place.name}.gate.{name}": tensor.shape for name, tensor in gate.state_dict().items()}
        places.append((place, spec))
    for name, shape in own.items():
        if name not in tensors or tensors[name].shape != shape:
            found = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
            raise ExciteError(
                f"{path} does not fit its own header: {shown_text(name)} is {found} instead of {tuple(shape)}; get or "
                "write the file again"
            )
    if len({place.name for place, _ in places}) < len(places):
        raise ExciteError(f"{path} says that excite wrote it, but its header is damaged: two gates have one place")
    return about, places


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is missing, left over or of another shape, one clause each."""
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is left over" for name in tensors if name not in own]
    return wrong + [
        f"{name} has shape {tuple(t.shape)} instead of {tuple(own[name].shape)}"
        for name, t in tensors.items()
        if name in own and own[name].shape != t.shape
    ]
