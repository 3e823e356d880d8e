"""``excite explain``: the explanation, in a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from excite.errors import ExciteError
from excite.explain.run import Explanation, explain
from excite.progress import Progress
from excite.recipe import Overrides, is_override, override_words
from excite.trained.given import find_images

Words = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def explain_and_write(
    source: str | Path,
    *words: Words,
    overrides: Overrides = (),
    data: str | Path | None = None,
    images: int = 2000,
    out: str | Path | None = None,
    classes: str | Sequence[str] = (),
    gates: str | Sequence[str] = (),
    ablation: str = "full",
    timing: bool = True,
    batch: int = 16,
    max_drop: float = 0.1,
    target: str | None = None,
    layer: str | None = None,
    top_k: int = 5,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Explanation:
    """Find out what the gates of a trained network do, and write tables and figures into a new folder.

    ``excite.explain("runs/my-run", "photo.jpg")``; without files: :func:`excite.explain.explain`.

    Args:
        source: a run folder or a checkpoint.
        words: images, folders and patterns to explain one by one, in a list or not; and ``data.key=value``.
        overrides: more of these; see ``load_recipe``.
        data: stands for ``data.root=``.
        images: validation images to look at (class-balanced, seeded); 0: only the images named.
        out: the new folder; None takes ``explain-NAME`` here, with a number where that is taken.
        classes, gates: what the figures show; without any, some are chosen.
        ablation: "full" evaluates the network with each gate fixed at its mean; "estimate" takes one pass for all, to
            first order; "off" does neither.
        timing: whether to time the network without each gate.
        batch: images of a timed pass.
        max_drop: percentage points of top-1 that the gates that could go may cost together.
        target: the class that Grad-CAM is about; None takes each image's most likely one.
        layer: the module that Grad-CAM looks at; None takes the last that gives a map.
        top_k: classes to list for an image.
        device: "auto", "cpu", "cuda" ...
        precision: "auto" (what it was trained with), "fp32", "bf16", "fp16".
        progress: called with (what is being done, done, in all).

    Raises:
        ExciteError: see :func:`excite.explain.explain`; the folder is there already, an image is not.
    """
    if out is not None and Path(out).exists():
        raise ExciteError(f"{out} already exists; name a new folder")
    given = [os.fspath(word) for each in words for word in ([each] if isinstance(each, str | os.PathLike) else each)]
    changes = [word for word in given if is_override(word)] + override_words(overrides)
    changes += [f"data.root={data}"] if data is not None else []
    result = explain(
        source,
        find_images([word for word in given if not is_override(word)]),
        changes,
        limit=images,
        ablation=ablation,
        timing=timing,
        batch=batch,
        max_drop=max_drop,
        target=target,
        layer=layer,
        top_k=top_k,
        drawn_classes=[classes] if isinstance(classes, str) else classes,
        drawn_gates=[gates] if isinstance(gates, str) else gates,
        device=device,
        precision=precision,
        progress=progress,
    )
    result.write(Path(out) if out is not None else _free_name(str(source)))
    return result


def _free_name(source: str) -> Path:
    path = Path(source)
    name = f"explain-{path.stem if path.suffix == '.safetensors' else path.name or 'network'}"
    number = 1
    while (found := Path(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return found
