"""Saves and loads grafted networks of other libraries: the weights, and the places of the gates."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from excite.errors import ExciteError, shown, shown_text
from excite.files import to_json, written_aside
from excite.gates import create_gate, list_gates
from excite.gates.registry import GateTable, model_option_names
from excite.models.base import Classifier
from excite.models.factory import create_model
from excite.models.grafting.core import unwrap, wrap
from excite.models.grafting.places import Place
from excite.models.grafting.wrapper import Grafted
from excite.models.timm_models import PREFIX
from excite.weights.digest import read_safetensors, write_safetensors
from excite.weights.header import GraftHeader, GraftMeta, Meta, Summary, check_arguments, read_header
from excite.weights.locate import GRAFTED

FORMAT_VERSION = 1


def header(meta: Meta, model: Classifier, metrics: Summary | None) -> Meta:
    """The header of a checkpoint whose gates have changed, with the new model in it and in its recipe.

    ``model`` is one of ours, or one of timm's from ``create_model("timm:...")``.
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
        "trained_as": meta.get("trained_as", meta["model"]),  # training with that recipe does not give these weights
        "versions": versions(),
    }


def save_grafted(model: nn.Module, path: str | Path, source: str = "") -> None:
    """Write a grafted network of another library as a safetensors file, atomically.

    The tensors have the names of the ungated network, plus ``PLACE.gate.*``.

    Args:
        model: the result of ``excite.graft`` for a network that is not one of ours.
        path: the file.
        source: how to build the ungated network again, such as ``timm:resnet50``; "" if it will be given to
            :func:`load_grafted`.

    Raises:
        ExciteError: the network has no grafted gates, or the file cannot be written.
    """
    if isinstance(model, Classifier):
        raise ExciteError(
            f"{model.model_name} is one of excite's models, whose run folders and checkpoints record its gates; "
            "save_grafted is for networks of other libraries"
        )
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, Grafted)}
    if not wrappers:
        raise ExciteError(f"{type(model).__name__} has no grafted gates to save")
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
        write_safetensors(aside, tensors, {GRAFTED: to_json(about)})


def load_grafted(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a network written by :func:`save_grafted`, with gates and weights.

    Args:
        path: the file.
        model: the network without gates, which is changed in place; None: create the one named in the file (timm's
            models).

    Returns:
        The network.

    Raises:
        ExciteError: it is not such a file, or it does not fit the network.
    """
    tensors, texts = read_safetensors(Path(path))
    text = texts.get(GRAFTED)
    if text is None:
        raise ExciteError(f"{path} is not a grafted network of another library (for excite's own: excite.load)")
    about, places = _read_header(path, text, tensors)
    if model is None:
        if not about["source"].startswith(PREFIX):
            raise ExciteError(
                f"{path} does not say how to create its {shown_text(about['network'])}; give the network without gates "
                "as model="
            )
        model = create_model(about["source"])
    names = {name for name, _ in model.named_modules()}
    for place, _ in places:
        if place.name not in names:
            raise ExciteError(
                f"{path} has a gate after {shown(place.name)}, which {type(model).__name__} does not have"
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
    """The header, and its places with the gates' tables, checked against the file's tensors.

    Raises:
        ExciteError: it is damaged, has another format version, or contradicts the tensors.
    """
    about = read_header(text, path, GraftHeader)
    places: list[tuple[Place, GateTable]] = []
    own: dict[str, torch.Size] = {}
    for entry in about["places"]:
        height, width = entry["size"]
        place = Place(entry["name"], entry["channels"], (height, width), entry["channels_last"])
        spec = dict(entry["spec"])
        check_arguments(path, {"channels": place.channels, **spec}, tensors)
        with torch.device("meta"):  # a gate as large as a map may need more memory than there is
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
        raise ExciteError(f"{path} says that excite wrote it, but its header is damaged: two gates have the same place")
    return about, places


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is missing, unexpected or of the wrong shape, one clause each."""
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is left over" for name in tensors if name not in own]
    return wrong + [
        f"{name} has shape {tuple(t.shape)} instead of {tuple(own[name].shape)}"
        for name, t in tensors.items()
        if name in own and own[name].shape != t.shape
    ]
