"""The implementation of ``excite convert``: find, recognise, verify, write. Nothing else imports this."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor

from excite.errors import ExciteError
from excite.files import written_aside
from excite.logits import finite
from excite.models import Classifier
from excite.models.catalog import ModelArgs
from excite.progress import Progress, silent
from excite.runtime.environment import versions
from excite.text import show as show_line
from excite.weights.convert import Loaded, convert
from excite.weights.destination import check_destination
from excite.weights.header import Meta
from excite.weights.layouts import Settings
from excite.weights.meta import describe, read_classes
from excite.weights.own import read_own, save_weights
from excite.weights.verify import (
    TOLERANCE,
    Difference,
    DifferenceRow,
    check_places,
    differences,
    first_apart,
    read_reference,
    trace,
)
from excite.weights.write import export_state_dict, save_state_dict

#: Images of noise to compare on if none are given: enough to tell networks apart.
_NOISE_IMAGES = 2


@dataclass(frozen=True)
class Verified:
    """The result of a comparison: with what, the differences by place, and the first place that differs."""

    against: str
    differences: list[Difference]
    apart: Difference | None
    notes: list[str]


#: With what it was compared, and the differences by place. ("with" is a keyword, hence this form.)
VerifiedValues = TypedDict("VerifiedValues", {"with": str, "places": list[DifferenceRow]})


class Summary(TypedDict):
    """What was recognised and loaded.

    Attributes:
        format: format of the file.
        layout: whose names its tensors have.
        model, args: ``create_model(model, **args)`` builds the network.
        tensors: number of tensors.
        fresh: our tensors that the source has no values for.
        left_over: tensors of the source that were not used.
        beside: what else is in the file -> number of tensors.
        assumed: settings that are not given anywhere, with the network's defaults.
    """

    format: str
    layout: str
    model: str
    args: ModelArgs
    tensors: int
    fresh: list[str]
    left_over: list[str]
    beside: dict[str, int]
    assumed: Settings


class Conversion(Summary):
    """What ``excite convert --json`` prints."""

    source: str
    destination: str
    verified: NotRequired[VerifiedValues]


def convert_file(
    source: str | Path,
    destination: str | Path,
    *,
    arch: str | None = None,
    verify: str | Path | None = None,
    against: str | Path | None = None,
    tolerance: float = TOLERANCE,
    allow_partial: bool = False,
    to: str = "excite",
    classes: str | Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = show_line,
    show: Callable[[list[DifferenceRow]], None] | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Convert a checkpoint. Nothing is written if anything fails.

    Args:
        source: see ``load_weights``.
        destination: the file to write.
        arch: name of the network, if it should not be recognised.
        verify: an ``.npz`` with another system's input and outputs, or an image.
        against: another checkpoint, which must compute the same.
        tolerance: largest allowed relative difference.
        allow_partial: write what fits and list the rest.
        to: "excite", "timm" or "torchvision".
        classes: a file of class names, one per line.
        force: overwrite an existing file.
        say: called with each sentence for the user.
        show: called with the rows of a comparison, before it is judged.
        progress: called while the source is read, compared and written.

    Raises:
        ExciteError: as in ``load_weights``; or the destination exists, or the outputs differ.
    """
    source, destination = str(source), Path(destination)
    verify, against = (None if each is None else str(each) for each in (verify, against))
    check_destination(destination, to, force)
    progress("reading", 0, 0)
    model, loaded = convert(source, arch=arch, allow_partial=allow_partial)
    model.eval()
    say(loaded.foreign.sentence())
    _say_misfits(loaded, say)
    meta = None
    if to == "excite" or classes is not None or (verify is not None and not _is_reference(verify)):
        described = describe(model, loaded, None if classes is None else read_classes(Path(classes)))
        meta = cast(Meta, {**described, "versions": versions()})
    result: Conversion = {"source": source, **_summary(model, loaded), "destination": str(destination)}
    if verify is not None or against is not None:
        progress("comparing", 0, 0)
        verified = _verify(model, meta, verify, against, tolerance, say)
        if show is not None:
            show([d.row() for d in verified.differences])
        for note in verified.notes:
            say(note)
        _judge(verified, tolerance)
        result["verified"] = {"with": verified.against, "places": [d.row() for d in verified.differences]}
    progress("writing", 0, 0)
    say(_write(model, destination, to) if meta is None or to != "excite" else _write_own(model, meta, destination))
    return result


def _say_misfits(loaded: Loaded, say: Callable[[str], None]) -> None:
    misfits = loaded.misfits()
    if misfits:
        say(misfits)


def _summary(model: Classifier, loaded: Loaded) -> Summary:
    foreign = loaded.foreign
    return {
        "format": foreign.format,
        "layout": "excite" if foreign.layout is None else foreign.layout.key,
        "model": model.model_name,
        "args": model.model_args,
        "tensors": len(foreign.tensors),
        "fresh": loaded.fresh,
        "left_over": loaded.left_over,
        "beside": dict(foreign.choice.beside),
        "assumed": foreign.assumed,
    }


def _verify(
    model: Classifier,
    meta: Meta | None,
    verify: str | None,
    against: str | None,
    tolerance: float,
    say: Callable[[str], None],
) -> Verified:
    """Compare with the outputs in a file, with another checkpoint, or, given only an image, with float64."""
    outputs: dict[str, Tensor] = {}
    notes = []
    if verify is not None and _is_reference(verify):
        reference = read_reference(verify)
        images, outputs = reference.images, reference.outputs
        if images.shape[1] != model.in_chans:
            raise ExciteError(
                f"{verify} has images with {images.shape[1]} channels, but {model.model_name} takes {model.in_chans}"
            )
        check_places(reference, model, verify)
        notes += [f"{verify}: not compared: {', '.join(reference.skipped)}"] if reference.skipped else []
    elif verify is not None and meta is not None:
        images = _image(verify, meta)
    else:
        images = torch.randn(_NOISE_IMAGES, *model.input_size, generator=torch.Generator().manual_seed(0))
    places = trace(model, images)
    if verify is not None and meta is not None and not outputs:
        say(_top(places["logits"], meta))
    if against is not None:
        other, loaded = convert(against)
        say(loaded.foreign.sentence())
        found = differences(places, trace(other.eval(), images))
        return Verified(against, found, first_apart(found, tolerance), notes)
    if outputs:
        found = differences(places, outputs)
        return Verified(str(verify), found, first_apart(found, tolerance), notes)
    notes.append("an image comes without outputs to compare with, so this only shows that float32 and float64 agree")
    fused = model.fused
    model.set_fused("off")
    precise = trace(model.double(), images.double())
    model.float().set_fused(fused)
    found = differences({k: v for k, v in places.items() if "." not in k}, precise)
    return Verified("the same in float64", found, first_apart(found, tolerance), notes)


def _is_reference(verify: str) -> bool:
    """Whether it holds another system's input and outputs, rather than an image."""
    return Path(verify).suffix.lower() == ".npz"


def _image(path: str, meta: Meta) -> Tensor:
    from excite.data.decode import BadImageError
    from excite.data.preprocessing import Preprocessing

    preprocessing = Preprocessing.from_dict(meta["preprocessing"])
    try:
        return preprocessing.normalize(preprocessing.load(path)[None])
    except BadImageError as error:
        raise ExciteError(f"--verify {path} is neither an .npz nor a readable image: {error}") from error


def _top(logits: Tensor, meta: Meta) -> str:
    if not bool(finite(logits[:1])):
        return "most likely: no class, because the logits are not finite"
    best = logits[0].softmax(0).topk(min(5, logits.shape[1]))
    names = [meta["classes"][k] for k in best.indices.tolist()]
    return "most likely: " + ", ".join(f"{n} {100 * p:.1f} %" for n, p in zip(names, best.values.tolist(), strict=True))


def _judge(verified: Verified, tolerance: float) -> None:
    if verified.apart is None:
        return
    place = verified.apart
    raise ExciteError(
        f"not the same as {verified.against}: the first place that differs is {place.place}, by {place.relative:.3g} "
        f"of the largest value there (allowed {tolerance:g}); nothing was written"
    )


def _write_own(model: Classifier, meta: Meta, destination: Path) -> str:
    """Write atomically, and read back what was written before it gets its name."""
    with written_aside(destination) as aside:
        save_weights(aside, model, meta)
        _check_written(aside, model)
    shown = ", ".join(f"{k} {v}" for k, v in meta["preprocessing"].items())
    return f"written: {destination} ({shown})"


def _write(model: Classifier, destination: Path, to: str) -> str:
    """The same under another library's names."""
    exported = export_state_dict(model, to)
    with written_aside(destination) as aside:
        named = aside.with_name(f"{aside.name}{destination.suffix}")  # the extension determines the format
        save_state_dict(exported, named)
        named.replace(aside)
    return f"written: {destination}, for {exported.sentence()}"


def _check_written(path: Path, model: Classifier) -> None:
    written = read_own(path).tensors
    for name, tensor in model.state_dict().items():
        if not torch.equal(written[name], tensor):
            raise ExciteError(f"{path}: the tensor {name} was not written correctly; the disk may be failing")
