"""Finds the network's tensors in a file: usually those under one prefix, besides a loss, an average or a teacher."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from excite.errors import ExciteError
from excite.weights.layouts import LAYOUTS, Choice, Layout, Source
from excite.weights.stored import Stored

#: Parts that torch.compile and FSDP insert anywhere in a name.
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: Prefixes that DistributedDataParallel, Lightning and hand-written trainers put before every name.
WRAPPERS = ("module.", "model.", "net.", "network.", "state_dict.", "encoder.", "backbone.")
#: A moving average is preferred to the raw weights: it is what such scripts evaluate and report.
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|swa|teacher|momentum_encoder)([._]|$)", re.IGNORECASE)
#: Tensors of losses, metrics and averages that Lightning modules and the like hold besides a network.
_NO_NETWORK = re.compile(r"(criterion|loss|loss_fn|loss_func\w*|\w*_(loss|acc|accuracy|metrics?))\.|n_averaged$")
#: Names of a single-layer classifier that is not part of the body.
_HEAD = re.compile(r"head|fc|classifier|linear|last_linear|cls_head|logits|output|out|\d+")
#: fastai and ``nn.Sequential(*net.children())`` number the parts of a ResNet; 2 and 3 (ReLU, pooling) have no tensors.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_DEEPEST = 6
#: Fewer tensors than this do not make a network.
_FEW = 8

Tensors = dict[str, Tensor]
Fit = Callable[[Tensors], int]


def unwrapped(stored: Stored, own: Mapping[str, Tensor] | None = None, head: str = "fc") -> Source:
    """The tensors of the network in a file, without the prefix of their names.

    If there are several prefixes, the one with the most matching tensors is used; among equals, a moving average.
    ``Source.choice`` says what was left out. A classifier besides the body (Lightning's ``backbone.`` and ``head.``) is
    added to it.

    Args:
        stored: the file.
        own: the tensors to match, name -> tensor; None: the names of any known layout.
        head: name of the classifier in ``own``.
    """
    tensors = _without_inner_wrappers(stored.tensors)
    fit = _fit_known if own is None else _fit_own(own)
    best, count = _best(tensors, fit)
    if not count:
        return Source(_common_stripped(tensors), stored.metadata)
    group = _children_named({n.removeprefix(best): t for n, t in tensors.items() if n.startswith(best)})
    outside = [name for name in tensors if not name.startswith(best)]
    if not best:
        outside = _strangers(group, fit)
        group = {name: tensor for name, tensor in group.items() if name not in outside}
    parent = best.rstrip(".").rpartition(".")[0]
    near = {n: tensors[n] for n in outside if n.startswith(f"{parent}." if parent else "")}
    joined, taken = _with_head(group, near, parent, own, head)
    left = [name for name in outside if name not in taken]
    where = f"{next(iter(taken)).rpartition('.')[0]}." if taken else ""
    where = where if taken.keys() <= {*outside} else best + where
    return Source(joined, stored.metadata, Choice(best if outside else "", _counted(left, best), where))


def _best(tensors: Tensors, fit: Fit) -> tuple[str, int]:
    """The prefix with the most matching tensors, and their number."""
    best, count = "", 0
    for prefix, group in _groups(tensors).items():
        found = fit(group)
        if found > count or (found == count > 0 and _is_average(prefix) and not _is_average(best)):
            best, count = prefix, found
    return best, count


def _is_average(prefix: str) -> bool:
    return bool(_AVERAGE.search(prefix))


def _without_inner_wrappers(tensors: Mapping[str, Tensor]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        for word in INSIDE:
            name = name.replace(word, "")
        renamed[name] = tensor
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Prefix -> the tensors under it, by the rest of their names; "" comes first."""
    groups: dict[str, Tensors] = {"": dict(tensors)}
    for name, tensor in tensors.items():
        parts = name.split(".")
        for depth in range(1, min(len(parts), _DEEPEST + 1)):
            groups.setdefault(".".join(parts[:depth]) + ".", {})[".".join(parts[depth:])] = tensor
    return groups


def _children_named(tensors: Tensors) -> Tensors:
    """The parts of a ResNet under their names, if they are numbered."""
    if not ({"1.running_mean", "4.0.conv1.weight"} <= tensors.keys()):
        return tensors
    named = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        named[f"{_CHILDREN.get(first, first)}{dot}{rest}"] = tensor
    return named


def _fit_known(tensors: Tensors) -> int:
    """Number of tensors in a group that its layout knows; 0 if no layout recognises it."""
    tensors = _children_named(tensors)
    layout = layout_of(tensors)
    if layout is None:
        return 0
    try:
        return len(layout.read(Source(tensors, {}))[0])
    except ExciteError:  # errors are reported when it is really read
        return 0


def _fit_own(own: Mapping[str, Tensor]) -> Fit:
    """Number of tensors in a group that match a network's own names or those of a known layout."""

    def fit(tensors: Tensors) -> int:
        tensors = _children_named(tensors)
        layout = layout_of(tensors)
        found = _same(tensors, own)
        if layout is None:
            return found
        try:
            return max(found, _same(layout.read(Source(tensors, {}))[0], own))
        except ExciteError:
            return found

    return fit


def _same(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int:
    return sum(name in own and own[name].shape == tensor.shape for name, tensor in tensors.items())


def layout_of(names: Iterable[str]) -> Layout | None:
    """The key map with a matching signature, or None."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.recognises(names)), None)


def _strangers(tensors: Tensors, fit: Fit) -> list[str]:
    """Names besides a network without a prefix that do not belong to it: of a loss, or of another network."""
    whole, others = fit(tensors), []
    for prefix, group in _groups(tensors).items():
        if prefix and prefix.count(".") <= 2 and len(group) > _FEW and fit(group):
            rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
            others += [prefix] if fit(rest) == whole else []
    return [name for name in tensors if _NO_NETWORK.match(name) or name.startswith(tuple(others))]


def _with_head(
    body: Tensors, near: Mapping[str, Tensor], parent: str, own: Mapping[str, Tensor] | None, head: str
) -> tuple[Tensors, dict[str, Tensor]]:
    """The body with the dense layer that is its classifier; returns all tensors, and what was added."""
    place, features = _place_of_head(body, own, head)
    if place is None or f"{place}.weight" in body:
        return body, {}
    parts: dict[str, Tensors] = {}
    start = f"{parent}." if parent else ""
    for names, beginning in ((near, start), (body, "")):
        for name, tensor in names.items():
            first = name.removeprefix(beginning).partition(".")[0]
            if _HEAD.fullmatch(first) and not (names is body and own is not None and name in own):
                parts.setdefault(f"{beginning}{first}", {})[name] = tensor
    layers = [part for part in parts.values() if _is_dense(part, features)]
    if len(layers) != 1:
        return body, {}
    layer = layers[0]
    kept = {name: tensor for name, tensor in body.items() if name not in layer}
    return kept | {f"{place}.{name.rpartition('.')[2]}": tensor for name, tensor in layer.items()}, layer


def _place_of_head(body: Tensors, own: Mapping[str, Tensor] | None, head: str) -> tuple[str | None, int]:
    """Name of the classifier, by the body's names, and its number of features."""
    layout = layout_of(body)
    row = None if layout is None else next((row for row in layout.rows if row.ours == "fc"), None)
    if layout is None and own is not None:
        weight = own.get(f"{head}.weight")
        return (None, 0) if weight is None or weight.ndim != 2 else (head, weight.shape[1])
    if layout is None or row is None or layout.leaves["dense"][0].theirs != "weight":
        return None, 0
    try:
        ours = layout.read(Source(body, {}))[0]
    except ExciteError:
        return None, 0
    ends = [t.shape[0] for n, t in ours.items() if re.fullmatch(r"(layer\d+\.0\.)?(conv2|conv3)\.weight", n) and t.ndim]
    return row.theirs, max(ends, default=0)


def _is_dense(part: Mapping[str, Tensor], features: int) -> bool:
    """Whether these are the weight (classes, features) of a dense layer, with or without a bias."""
    modules = {name.rpartition(".")[0] for name in part}
    leaves = {name.rpartition(".")[2]: tensor for name, tensor in part.items()}
    if len(modules) != 1 or not leaves.keys() <= {"weight", "bias"} or "weight" not in leaves:
        return False
    return leaves["weight"].ndim == 2 and leaves["weight"].shape[1] == features


def _common_stripped(tensors: Tensors) -> Tensors:
    """If nothing is known, at least remove the wrappers that all names share."""
    stripped = True
    while stripped and tensors:
        stripped = False
        for prefix in WRAPPERS:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
                stripped = True
    return tensors


def _counted(names: Iterable[str], taken: str) -> dict[str, int]:
    """First part in which names differ from the prefix ``taken`` -> number of such names."""
    counts: dict[str, int] = {}
    for name in names:
        parts, known = name.split("."), taken.split(".")
        depth = 1
        while depth < len(parts) and parts[:depth] == known[:depth]:
            depth += 1
        key = ".".join(parts[:depth]) + ("." if depth < len(parts) else "")
        counts[key] = counts.get(key, 0) + 1
    return counts
