"""``compare``: read the runs, compute the numbers, and write page, table and figures."""

import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from excite.compare.figures import draw_images, figures
from excite.compare.page import make_page
from excite.compare.runs import Run, read_run
from excite.compare.study import OnlyOne, Study, study
from excite.compare.table import outward, sentences, shown, with_ends
from excite.compare.words import check_folder, check_target, settle
from excite.data import DataSets, FileImages
from excite.data.decode import BadImageError, load_shown
from excite.errors import ExciteError
from excite.files import write_text
from excite.pages.figures import dispensable, save
from excite.pages.inline import Thumbnail, show_table
from excite.pages.pictures import visible
from excite.pages.tables import to_csv
from excite.progress import Progress
from excite.recipe import Overrides, override_words
from excite.text import tell

#: Photographs are reduced to this longer side, in pixels, to keep pages small.
LONGEST_SIDE = 224
#: The most pictures per pair of runs in a notebook.
_MOST_PICTURES = 10


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        found: all numbers and sentences, ready for JSON.
        pixels: the images of each entry of ``found["only_one"]``, uint8 (H, W, C); empty if they are not available.
        files: the files that ``excite.compare(...)`` wrote, the page first; empty from :func:`compare`.
    """

    found: Study
    pixels: list[list[np.ndarray]]
    files: tuple[Path, ...] = ()

    def to_dict(self) -> Study:
        """Everything that the page shows, except the pictures; with several labels an image, see :func:`outward`."""
        return outward(self.found)

    def to_csv(self) -> str:
        """The table as CSV: one row per run."""
        return to_csv(outward(self.found)["rows"])

    def to_html(self) -> str:
        """The page as HTML."""
        pictures = [[_png(image) for image in images] for images in self.pixels]
        return make_page(self.found, pictures, figures(self.found)).render()

    def _repr_html_(self) -> str:
        percent = f"{100 * self.found['confidence']:g} %"
        heads = [
            "run",
            "gate",
            "epochs",
            *(["balanced %"] if self.found["uneven"] else []),
            f"{self.found['measure']} % [{percent}]",
        ]
        heads += (
            [f"difference [{percent}]", "micro F1 %" if self.found["measure"] == "mAP" else "p"]
            if self.found["paired"]
            else []
        )
        rows: list[list[str]] = []
        for row in shown(self.found):
            top1 = "-" if row["top1"] is None else with_ends(f"{row['top1']:.2f}", row["top1_interval"], "[]")
            change = row["difference_interval"] or "-"
            if row["difference"] is not None:
                change = f"{row['difference']:+.2f} [{change}]"
            balanced = "-" if row["balanced"] is None else f"{row['balanced']:.2f}"
            cells = [row["label"], row["gate"] or "none", row["epochs_text"] or "-"]
            cells += [
                *([balanced] if self.found["uneven"] else []),
                top1,
                change,
                row["p_text"] or row["f1_text"] or "-",
            ]
            rows.append(cells[: len(heads)])
        parts = [show_table(heads, rows, notes=[*self.found["notes"], *sentences(self.found)])]
        for pair, images in zip(self.found["only_one"] or [], self.pixels, strict=False):
            if images:
                title = f"images that only one of {pair['baseline']} and {pair['label']} gets right"
                parts.append(show_table([""], [[[Thumbnail(image) for image in images[:_MOST_PICTURES]]]], title=title))
        return "".join(parts)

    def write(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the page, and next to it the table as CSV.

        Args:
            path: path of the page, ending in ".html".
            force: overwrite existing files.

        Returns:
            The paths of the page and the CSV file.

        Raises:
            ExciteError: another suffix, a file that exists, or a place that cannot be written.
        """
        page, table = check_target(path, force)
        write_text(table, self.to_csv())  # the numbers first
        write_text(page, self.to_html())
        return [page, table]

    def write_figures(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Write every figure as PNG and SVG into a folder; a figure that cannot be drawn is reported on standard error.

        Args:
            folder: a new folder; with ``force`` it may exist, and files of the same names are replaced.
            force: see ``folder``.

        Returns:
            The paths of the files.

        Raises:
            ExciteError: the folder exists or cannot be written.
        """
        folder = check_folder(folder, force)
        written = []
        for name, figure in figures(self.found).items():
            with dispensable(name, tell):
                written += save(figure, folder / name)
        for number, (pair, images) in enumerate(zip(self.found["only_one"] or [], self.pixels, strict=False), 1):
            if images:
                name = re.sub(r"[^A-Za-z0-9._-]+", "-", pair["label"])
                with dispensable(f"images-{number}-{name}", tell):
                    written += draw_images(pair, images, folder / f"images-{number}-{name}")
        return written


def compare(
    sources: Sequence[str | Path],
    overrides: Overrides = (),
    *,
    labels: Sequence[str] | None = None,
    baseline: str | None = None,
    confidence: float = 0.95,
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare trained networks on the same images.

    Args:
        sources: two or more run folders, checkpoints, or other libraries' weights (see ``excite.load``).
        overrides: ``data.key=value`` strings for all networks, for example ``data.root=/other/images`` (see
            ``load_recipe``).
        labels: a name for each; None: the names of the folders.
        baseline: the source or label that the others are compared with; None: the first.
        confidence: confidence level of the intervals.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto"; None: for each network that of its training.
        progress: called with (current step, units done, units in total).

    Raises:
        ExciteError: fewer than two sources, one given twice, no weights at a source, wrong labels, baseline or
            overrides; with overrides also if no network can be evaluated on these data. Without overrides, missing
            data are not an error: the results stored in the run folders are compared.
    """
    names, overrides = [str(source) for source in _each(sources)], override_words(overrides)
    called, first = settle(names, overrides, labels, baseline, confidence)
    runs: list[Run] = []
    for source, label in zip(names, called, strict=True):
        like = runs[0] if runs else None
        run = read_run(source, label, overrides, like=like, device=device, precision=precision, progress=progress)
        runs.append(run)
    if overrides and all(run.predictions is None for run in runs):
        raise ExciteError(str(runs[first].problem))
    found = study(runs, first, confidence)
    options = [] if labels is None else ["--labels", ",".join(labels)]
    options += [] if baseline is None else ["--baseline", baseline]
    options += [] if confidence == 0.95 else ["--confidence", f"{confidence:g}"]
    found["command"] = shlex.join(["excite", "compare", *names, *overrides, *options])
    return Comparison(found, _pixels(runs, found["only_one"] or []))


def _each(sources: Sequence[str | Path]) -> Sequence[str | Path]:
    return [sources] if isinstance(sources, str | Path) else sources  # a string is one source


def _pixels(runs: Sequence[Run], pairs: Sequence[OnlyOne]) -> list[list[np.ndarray]]:
    """The images of every pair, from the data of either run; empty if neither has them."""
    by_label = {run.label: run for run in runs}
    found = []
    for pair in pairs:
        data = by_label[pair["baseline"]].data or by_label[pair["label"]].data
        found.append([] if data is None else [_image(data, image["position"]) for image in pair["images"]])
    return found


def _image(data: DataSets, position: int) -> np.ndarray:
    """uint8 (H, W, C): the network's view of an image in memory, or else the whole photograph, reduced."""
    if not isinstance(data.val, FileImages):
        return data.val.images[position].permute(1, 2, 0).cpu().numpy()
    try:
        image = load_shown(data.val.source(position), data.preprocessing.in_chans, white=data.val.white)
    except BadImageError:  # deleted since it was predicted
        return np.full((32, 32, 3), 128, np.uint8)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(visible(image)).save(out, "PNG", optimize=True)
    return out.getvalue()
