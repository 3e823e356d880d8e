"""Loading a run's initial weights (``train.init_from``), and what else the run adopts from that network.

A network expects images preprocessed as in its training. The run adopts its mean and standard deviation where the
recipe leaves them open (``data.mean: null``). What the recipe sets is kept; a note says what differs and what to type.
"""

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from excite.data import Preprocessing
from excite.data.folder import some
from excite.data.stored import KnownPreprocessing
from excite.errors import ExciteError, nearest
from excite.models import Classifier
from excite.models.catalog import VARIANTS
from excite.models.timm_models import PREFIX, classifier_name, first_name, images_of_timm, is_timm_model
from excite.recipe import Recipe, as_yaml, load_recipe
from excite.training.optimizer import layer_depths
from excite.weights.convert import (
    SETTINGS,
    Loaded,
    apply_settings,
    check_blocks,
    gated,
    read_foreign,
    start_from,
)
from excite.weights.function import other_gates_of_ours, other_gates_of_timms, refuse
from excite.weights.header import ModelMeta
from excite.weights.hub import local_weights
from excite.weights.locate import is_foreign
from excite.weights.own import Checkpoint, fresh_gates, listed, mismatches, read_own
from excite.weights.prefixes import unwrapped
from excite.weights.read import read_weights
from excite.weights.said import said_by
from excite.weights.stem import STEMS, fit_channels
from excite.weights.timms import network_of_timm

#: Means, deviations and crops that differ by less count as equal (they are the same numbers, rounded).
_CLOSE = 2e-3
#: Names of the stem in our recipes, whatever the network calls it.
_STEM_WORDS = ("conv1", "bn1", "stem")
_STAGES = ("layer1", "layer2", "layer3", "layer4")


class Statistics(TypedDict, total=False):
    """Per-channel mean and standard deviation of a network's training images, as in ``data.mean`` and ``data.std``.
    Either both are there or neither."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Taken:
    """What a run adopted from a network.

    Attributes:
        notes: sentences for the user.
        images: preprocessing of that network's images, keyed as in ``Preprocessing``; unknown values are left out.
        settings: options of the model that were changed to match that network.
        same_classes: its head was loaded, and its classes have the names of the run's.
    """

    notes: list[str]
    images: KnownPreprocessing = field(default_factory=KnownPreprocessing)
    settings: Mapping[str, Any] = field(default_factory=dict)
    same_classes: bool = False


def take_weights(model: Classifier, source: str, classes: Sequence[str] = (), probe: bool = False) -> Taken:
    """Load weights into ``model`` from ``source``: a run, a checkpoint of ours, or a file of another system.

    Args:
        model: the network, changed in place.
        source: the weights.
        classes: class names of the run, in the order of the logits. A stored head with the same classes in another
            order is reordered.
        probe: a linear probe is to replace the head of other classes.

    Raises:
        ExciteError: there are no weights, or they belong to another network.
    """
    foreign = is_foreign(source)
    if foreign and not is_timm_model(model):
        return _of_foreign(model, source)
    found, images, said = _of_timm(model, source) if foreign else _of_ours(source)
    stems = (f"{first_name(model)}.weight",) if is_timm_model(model) else STEMS
    found.tensors, adapted = fit_channels(found.tensors, model.state_dict(), stems)
    ordered = _reorder_head(found, classifier_name(model), classes, probe)
    fresh = take_over(model, found, classifier_name(model))
    settings: Mapping[str, Any] = {}
    if found.model is not None and not is_timm_model(model):
        settings = apply_settings(model, found.model["name"], found.model["args"])
    notes = [f"weights from {source}: {_taken(model, fresh)}", said, adapted, ordered, _set(settings)]
    same = bool(classes) and sorted(found.classes) == sorted(classes)
    return Taken(["; ".join(note for note in notes if note)], images, settings, same)


def _reorder_head(found: "Found", head: str, classes: Sequence[str], probe: bool) -> str:
    """Put the rows of a stored head in the order of ``classes``, if these are its classes.

    Returns:
        A clause on what was done, or on classes of other names; "" if the classes are equal or unknown.
    """
    theirs = found.classes
    if not classes or len(theirs) != len(classes) or theirs == list(classes):
        return ""
    if sorted(theirs) != sorted(classes):
        kept = "the linear probe replaces its head" if probe else "its head is kept (for a new one: train.probe=true)"
        return f"its classes have other names ({some(theirs)}) than these ({some(classes)}): {kept}"
    rows = torch.tensor([theirs.index(name) for name in classes])
    for name, tensor in found.tensors.items():
        if name.startswith(f"{head}."):
            found.tensors[name] = tensor[rows]
    return "its classes are in another order, so the rows of its head were reordered"


def _of_foreign(model: Classifier, source: str) -> Taken:
    loaded = start_from(model, source)
    note = f"weights from {loaded.sentence()}"
    if any(name.startswith("fc.") for name in loaded.fresh):
        note += f"; the head is new, for {model.num_classes} classes"
    return Taken([note], _images_of(loaded), loaded.settings)


def _images_of(loaded: Loaded) -> KnownPreprocessing:
    """Preprocessing of a foreign network's images, with their size if it is known."""
    foreign = loaded.foreign
    known = VARIANTS.get(foreign.name)
    usual = 224 if known is None else known["defaults"].get("image_size", 224)
    size = foreign.options.get("image_size", usual)
    channels = foreign.options.get("in_chans", 3)
    return {**foreign.preprocessing, "image_size": size, "in_chans": channels}


@dataclass
class Found:
    """The tensors of a file, and the network and the classes named in its header (None and [] if it names none)."""

    path: Path
    tensors: dict[str, Tensor]
    model: ModelMeta | None
    classes: list[str] = field(default_factory=list)


def _of_ours(source: str) -> tuple[Found, KnownPreprocessing, str]:
    checkpoint = read_own(source)
    return _with_model(checkpoint), {"fit": "crop", **checkpoint.meta["preprocessing"]}, ""


def _with_model(checkpoint: Checkpoint) -> Found:
    return Found(checkpoint.path, checkpoint.tensors, checkpoint.meta["model"], checkpoint.meta["classes"])


def _of_timm(model: Classifier, source: str) -> tuple[Found, KnownPreprocessing, str]:
    """A file with timm's tensor names. ``num_batches_tracked`` may be missing, as it was before PyTorch 0.4.1."""
    stored = read_weights(local_weights(source))
    said, own, head = said_by(stored), model.state_dict(), classifier_name(model)
    found = unwrapped(stored, own, head)
    counts = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    images: KnownPreprocessing = {**images_of_timm(model), **said.preprocessing}
    if said.image_size is not None:
        images["image_size"] = said.image_size
    _check_timm(model, source, found.tensors, said.name)
    tensors, note = counts | found.tensors, found.choice.sentence()
    if f"{head}.weight" in own and f"{head}.weight" not in tensors:  # a body alone: a head of no classes
        tensors |= {name: tensor[:0] for name, tensor in own.items() if name.startswith(f"{head}.")}
        note = "; ".join(part for part in (note, "it has no classifier that fits") if part)
    return Found(stored.path, tensors, None), images, note


def _check_timm(model: Classifier, source: str, tensors: Mapping[str, Tensor], said: str) -> None:
    """Raise ExciteError if most of a file does not fit and it is known which network it belongs to."""
    own = model.state_dict()
    fitting = sum(name in own and own[name].shape == tensor.shape for name, tensor in tensors.items())
    if fitting > len(own) / 2:
        return
    mine, theirs = model.model_name, network_of_timm(tensors, [said, source])
    name = None if theirs is None else f"{PREFIX}{theirs}"
    if name is None:
        with suppress(ExciteError):
            name = read_foreign(source).name
    if name is not None:
        raise ExciteError(f"train.init_from: {source} does not fit {mine}: it is {name} (set model.name={name})")


def _set(settings: Mapping[str, Any]) -> str:
    return "the model was set to " + ", ".join(f"{k}={v}" for k, v in settings.items()) if settings else ""


def _taken(model: Classifier, fresh: list[str]) -> str:
    """A clause on what ``model`` got from a checkpoint that lacked the tensors ``fresh``."""
    gates = fresh_gates(model, fresh)
    tensors = [name for name in fresh if not any(name.startswith(f"{gate}.") for gate in gates)]
    lacking = [f"{', '.join(tensors)} (another number of classes)"] if tensors else []
    lacking += [f"{len(gates)} gates, which start as the identity"] if gates else []
    head = f"; the head is new, for {model.num_classes} classes" if tensors else ""
    return f"all but {' and '.join(lacking)}{head}" if lacking else "all tensors"


def init_from(model: nn.Module, source: str, head: str = "fc") -> list[str]:
    """Initialise ``model`` from a checkpoint. A classifier with another number of classes keeps its fresh weights.

    So do gates that start as the identity (``create_gate({..., "identity": True})``) if the checkpoint has no tensors
    for them: the network then computes exactly what it did without gates.

    Returns:
        Names of the tensors that were not loaded (of the classifier or the gates; often none).

    Raises:
        ExciteError: the checkpoint does not fit in any other way.
    """
    return take_over(model, _with_model(read_own(source)), head)


def take_over(model: nn.Module, checkpoint: Found, head: str = "fc") -> list[str]:
    """:func:`init_from` for a checkpoint that has already been read."""
    own = model.state_dict()
    resized = [
        k for k, v in checkpoint.tensors.items() if k.startswith(f"{head}.") and k in own and v.shape != own[k].shape
    ]
    tensors = {k: v for k, v in checkpoint.tensors.items() if not (resized and k.startswith(f"{head}."))}
    fresh = [k for k in own if resized and k.startswith(f"{head}.")]
    lacking = [k for k in own if k not in tensors]
    gates = fresh_gates(model, lacking)
    fresh += [k for k in lacking if any(k.startswith(f"{gate}.") for gate in gates)]
    misfits = mismatches(model, tensors, set(fresh))
    if misfits:
        raise ExciteError(_other_network(model, checkpoint, misfits))
    _check_gates(model, checkpoint, gates)
    model.load_state_dict(tensors, strict=False)
    return fresh


def _other_network(model: nn.Module, checkpoint: Found, misfits: list[str]) -> str:
    """The sentence for a checkpoint that does not fit: which network it belongs to, if known, and what is wrong."""
    mine = str(getattr(model, "model_name", type(model).__name__))
    theirs = None if checkpoint.model is None else checkpoint.model["name"]
    is_other = f"it is {theirs} (set model.name={theirs}); " if theirs not in (None, mine) else ""
    return (
        f"train.init_from: {checkpoint.path} does not fit {mine}: {is_other}"
        f"{len(misfits)} tensors are missing, unexpected or of the wrong shape: {listed(misfits, 3)}"
    )


def _check_gates(model: nn.Module, checkpoint: Found, fresh: Collection[str]) -> None:
    """Refuse gates whose tensors fit but which compute something else than the checkpoint's; skip ``fresh`` ones."""
    written = checkpoint.model
    if written is None:
        return
    if not isinstance(model, Classifier):
        if two := other_gates_of_timms(model, written["args"]):
            raise refuse(f"train.init_from: {checkpoint.path}", two)
        return
    slots = {name.removesuffix(".gate") for name in fresh}
    different = other_gates_of_ours(model, written["name"], written["args"])
    if others := {slot: two for slot, two in different.items() if slot not in slots}:
        raise refuse(f"train.init_from: {checkpoint.path}", others)
    has_gates = gated(written["name"], written["args"])
    check_blocks(model, f"train.init_from: {checkpoint.path}", written["name"], written["args"], has_gates)


# --- preprocessing of the network's training images -----------------------------------------------------------------


def fit_images(recipe: Recipe, preprocessing: Preprocessing, taken: Taken) -> tuple[Statistics, list[str]]:
    """Decide what the run adopts of the network's preprocessing.

    Args:
        recipe: the recipe of the run.
        preprocessing: the preprocessing that the recipe asks for.
        taken: the result of ``take_weights``.

    Returns:
        The ``mean`` and ``std`` to use (or nothing), and sentences for the user.
    """
    images, data = _for_channels(taken.images, preprocessing.in_chans), recipe.data
    notes: list[str] = []
    use: Statistics = {}
    if "mean" in images and data.mean is None:
        use = {"mean": list(images.pop("mean")), "std": list(images.pop("std"))}
        notes.append(
            f"using data.mean={as_yaml(use['mean'])} and data.std={as_yaml(use['std'])}, as in the network's training"
        )
    differing = {k: v for k, v in images.items() if not _same(v, getattr(preprocessing, k))}
    for key in ("image_size", "fit"):
        if recipe.origin()["own"] is not None and recipe.is_own(f"data.{key}"):  # chosen for this very run
            differing.pop(key, None)
    if differing:
        there = ", ".join(f"data.{k}={as_yaml(_plain(v))}" for k, v in differing.items())
        here = ", ".join(as_yaml(_plain(getattr(preprocessing, k))) for k in differing)
        lines = " ".join(f'"data.{k}={as_yaml(_plain(v))}"' for k, v in differing.items() if _can_be_given(k, v))
        how = f"; to adopt them: {lines}" if lines else ""
        notes.append(f"the network was trained with {there}; this recipe has {here}{how}")
    return use, notes


def _for_channels(images: KnownPreprocessing, in_chans: int) -> KnownPreprocessing:
    """The same for images of ``in_chans`` channels. Mean and std are adapted to or from one channel, else left out."""
    found = cast(KnownPreprocessing, {k: v for k, v in images.items() if k != "in_chans" and v is not None})
    mean, std = found.get("mean"), found.get("std")
    if mean is not None and std is not None:
        known = images.get("in_chans", len(mean))
        if all(len(v) == known and (len(v) == in_chans or 1 in (len(v), in_chans)) for v in (mean, std)):
            found["mean"], found["std"] = _repeated(mean, in_chans), _repeated(std, in_chans)
            return found
    return cast(KnownPreprocessing, {k: v for k, v in found.items() if k not in ("mean", "std")})


def _repeated(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """One channel's value repeated for all channels, or the mean of all channels for a single one."""
    if len(values) == in_chans:
        return tuple(values)
    return (round(sum(values) / len(values), 4),) if in_chans == 1 else tuple(values) * in_chans


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list) and len(value) == 2 and value[0] == value[1] and isinstance(value[0], int):
        return value[0]  # a square
    return list(value) if isinstance(value, tuple) else value


def _same(theirs: Any, mine: Any) -> bool:
    theirs, mine = _plain(theirs), _plain(mine)
    if isinstance(theirs, list) and isinstance(mine, list):
        return len(theirs) == len(mine) and all(_same(a, b) for a, b in zip(theirs, mine, strict=True))
    if isinstance(theirs, float) and isinstance(mine, float | int):
        return abs(theirs - mine) <= _CLOSE
    return bool(theirs == mine)


def _can_be_given(key: str, value: Any) -> bool:
    """Whether a recipe accepts that value: there are only two interpolation filters."""
    return key != "interpolation" or value in ("bicubic", "bilinear")


def resolved(recipe: Recipe, taken: Taken, use: Statistics) -> Recipe:
    """The recipe with everything the run adopted written out, so that it can be resumed without the source."""
    keeps_head = taken.same_classes and recipe.train.probe
    if not use and not taken.settings and not keeps_head:
        return recipe
    values = recipe.model_dump(mode="json")
    values["train"]["probe"] = recipe.train.probe and not keeps_head
    values["data"] |= use
    values["model"]["options"] |= taken.settings
    return Recipe.from_dict(values)


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe for resuming, with what the run adopted when it began (in its folder, thanks to :func:`resolved`)."""
    if recipe.train.init_from is None and not recipe.model.options.get("pretrained"):
        return recipe
    begun = load_recipe(str(folder))
    if (begun.train.init_from, begun.model.name) != (recipe.train.init_from, recipe.model.name):
        return recipe
    use: Statistics = {}
    if recipe.data.mean is None and begun.data.mean is not None and begun.data.std is not None:
        use = {"mean": list(begun.data.mean), "std": list(begun.data.std)}
    settings = {key: value for key, value in begun.model.options.items() if key in SETTINGS}
    return resolved(recipe, Taken([], settings=settings, same_classes=not begun.train.probe), use)


def with_images(preprocessing: Preprocessing, use: Statistics) -> Preprocessing:
    """``preprocessing`` with the mean and standard deviation that the run adopts."""
    if not use:
        return preprocessing
    return replace(preprocessing, mean=tuple(use["mean"]), std=tuple(use["std"]))


# --- frozen parameters ----------------------------------------------------------------------------------------------


def fit_freeze(model: nn.Module, patterns: Sequence[str]) -> tuple[list[str], str]:
    """Translate the patterns of ``train.freeze`` to a network with other parameter names.

    ``norms`` stands for all norms outside the gates, with their statistics. A pattern that matches nothing is
    translated: the stem (``conv1``, ``bn1``) to the parameters of depth 0, all stages (``layer*``) to everything but
    stem and head, and ``fc`` to the classifier.

    Returns:
        The patterns, and a sentence on the changes ("" if there were none).

    Raises:
        ExciteError: a pattern matches nothing and is none of these; the message gives lines to type.
    """
    names = [name for name, _ in model.named_parameters()]
    head = classifier_name(model)
    fitted: list[str] = []
    changed: dict[str, str] = {}
    taken_out = False  # once a pattern excludes names again, the order matters
    for pattern in patterns:
        sign, bare = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
        if any(fnmatch.fnmatch(n, bare) or fnmatch.fnmatch(n, f"{bare}.*") for n in names):
            fitted += [] if pattern in fitted and not taken_out else [pattern]
            taken_out |= bool(sign)
            continue
        put = _parts_called(model, bare, names, head)
        if put is None:
            stem = ", ".join(_modules(_stem(model, names)))
            known = [*names, *dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)]
            known += dict.fromkeys(name.partition(".")[0] for name in names)
            others = (f', "freeze=[{stem}]" the stem,' if stem else ",") + ' "freeze=[]" nothing'
            raise ExciteError(
                f"train.freeze: no parameter of {getattr(model, 'model_name', 'the model')} matches {bare!r}"
                + nearest(bare, known, f"\"freeze=['*', '!{head}']\" keeps all but the head" + others)
            )
        fitted += [name for name in (f"{sign}{part}" for part in put) if taken_out or name not in fitted]
        taken_out |= bool(sign)
        if bare == "norms":  # the same in every network
            continue
        changed[pattern] = ", ".join(put) or "nothing"
    said = "; ".join(f"{theirs} is {ours}" for theirs, ours in changed.items())
    return fitted, f"train.freeze in {getattr(model, 'model_name', 'this model')}: {said}" if said else ""


def _parts_called(model: nn.Module, pattern: str, names: list[str], head: str) -> list[str] | None:
    """Modules of ``model`` that a pattern of our recipes stands for; None for any other pattern."""
    if pattern == "norms":
        return _norms(model)
    if pattern in _STEM_WORDS:
        return _modules(_stem(model, names)) or None
    if pattern in ("fc", "fc.*"):
        return [head]
    if all(fnmatch.fnmatch(stage, pattern) for stage in _STAGES):
        stem = _stem(model, names)
        return _tops([n for n in names if n not in stem and not n.startswith(f"{head}.")])
    return None


def _norms(model: nn.Module) -> list[str]:
    """All norms except those of the gates, which may be new."""
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    found = [name for name, module in model.named_modules() if isinstance(module, kinds) and list(module.parameters())]
    return [name for name in found if "gate" not in name.split(".")]


def _stem(model: nn.Module, names: list[str]) -> list[str]:
    """Parameters of depth 0, if the model reports the order of its layers."""
    try:
        depths = layer_depths(model)
    except ExciteError:
        return []
    return [name for name in names if depths.get(name) == 0]


def _modules(parameters: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))


def _tops(parameters: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in parameters))
