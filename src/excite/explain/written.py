"""``excite explain``: write an explanation to a folder."""

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
    """Study the gates of a trained network, and write tables and figures into a new folder.

    ``excite.explain("runs/my-run", "photo.jpg")`` calls this function; :func:`excite.explain.explain` writes no files.

    Args:
        source: a run folder or a checkpoint.
        words: images, folders and patterns of images to explain individually, and ``data.key=value`` strings; one by
            one or in lists.
        overrides: further ``data.key=value`` changes; see ``load_recipe``.
        data: short for ``data.root=``.
        images: validation images to use (class-balanced, seeded); 0: only the images named.
        out: the new folder; None: ``explain-NAME`` in the current folder, with a number if that exists.
        classes: classes to show in the figures; by default some are chosen.
        gates: gates to show in the figures; by default some are chosen.
        ablation: "full" evaluates the network with each gate fixed at its mean; "estimate" is a first-order estimate in
            one pass; "off" does neither.
        timing: whether to time the network without each gate.
        batch: batch size for timing.
        max_drop: percentage points of top-1 that the gates marked ``could_go`` may cost together.
        target: the class for Grad-CAM; None: the most likely class of each image.
        layer: the module for Grad-CAM; None: the last one that outputs a map.
        top_k: classes to list per image.
        device: "auto", "cpu", "cuda" ...
        precision: "auto" (that of the training), "fp32", "bf16" or "fp16".
        progress: called with (current step, units done, units in total).

    Returns:
        The explanation, with its folder.

    Raises:
        ExciteError: see :func:`excite.explain.explain`; or the folder exists, or an image does not.
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
