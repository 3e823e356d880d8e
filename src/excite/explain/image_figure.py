"""The figure for one image: classes, Grad-CAM, channels raised and lowered, and maps of gates that scale positions."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from excite.explain.figures import COLUMNS, choose_depths
from excite.explain.images import ExplainedImage, GateAnswer
from excite.pages.figures import COLORS, shortened, style, write
from excite.pages.pictures import visible
from excite.text import printable

#: Perceptually uniform and readable for colour-blind readers (see Matplotlib's documentation of its colour maps).
_CAM_MAP, _GATE_MAP = "cividis", "viridis"
_NAMED = 2  # channels labelled at each end of a gate's row


def draw_image(explained: ExplainedImage, path: Path) -> Path:
    """Draw an explained image into a PNG or SVG file, by the suffix of ``path``; return the path."""
    from matplotlib.figure import Figure

    maps = {name: a.positions for name, a in explained.gates.items() if a.positions is not None}
    chosen = choose_depths(list(maps), 2 * COLUMNS)
    map_rows = -(-len(chosen) // COLUMNS)
    gates = choose_depths(list(explained.gates), 18)
    others = list(explained.others)[: 2 * COLUMNS]
    cam_rows = -(-len(others) // COLUMNS)
    heights = [3.2, *([3.2] * cam_rows), 1.0 + 0.36 * len(gates), *([2.9] * map_rows)]
    with style():
        figure = Figure(figsize=(10.5, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
        _picture(figure.add_subplot(grid[0, 0]), explained)
        _cam(figure.add_subplot(grid[0, 1]), explained, explained.target, explained.cam)
        _classes(figure.add_subplot(grid[0, 2]), explained)
        for i, name in enumerate(others):
            axis = figure.add_subplot(grid[1 + i // COLUMNS, i % COLUMNS])
            _cam(axis, explained, name, explained.others[name])
        _channels(figure.add_subplot(grid[1 + cam_rows, :]), {name: explained.gates[name] for name in gates})
        for i, name in enumerate(chosen):
            axis = figure.add_subplot(grid[2 + cam_rows + i // COLUMNS, i % COLUMNS])
            _positions(figure, axis, explained, name)
        return write(figure, path, dpi=100)


def _shown(explained: ExplainedImage) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8."""
    return visible(explained.pixels.numpy().transpose(1, 2, 0))


def _gray(explained: ExplainedImage) -> np.ndarray:
    """float64 (H, W) in 0..1: gray, so that the picture's colours are not confused with the heat map."""
    shown = _shown(explained).astype(np.float64) / 255
    return shown if shown.ndim == 2 else shown @ np.array([0.299, 0.587, 0.114])


def _picture(axis: Any, explained: ExplainedImage) -> None:
    axis.imshow(_shown(explained), cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()
    axis.set_title(printable(Path(explained.path).name)[-30:], fontsize=10)


def _cam(axis: Any, explained: ExplainedImage, target: str, cam: Tensor) -> None:
    axis.imshow(_gray(explained), cmap="gray", vmin=0, vmax=1)
    axis.imshow(cam.numpy(), cmap=_CAM_MAP, vmin=0, vmax=1, alpha=0.6)
    axis.set_axis_off()
    nothing = "" if float(cam.max()) > 0 else ": no evidence"
    axis.set_title(f"Grad-CAM, {shortened(target, 22)}{nothing}\n({explained.layer})", fontsize=10)


def _classes(axis: Any, explained: ExplainedImage) -> None:
    names = [shortened(name, 22) for name, _ in explained.top]
    values = [100 * value for _, value in explained.top]
    axis.barh(range(len(names)), values, color=COLORS[1], alpha=0.45)
    for y, (name, value) in enumerate(zip(names, values, strict=True)):
        axis.annotate(f"{name}  {value:.1f} %", (0, y), (4, 0), textcoords="offset points", va="center")
    axis.set_xlim(0, 100)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("probability, %")


def _channels(axis: Any, gates: dict[str, GateAnswer]) -> None:
    """One row per gate: a dot per channel, with the numbers of the outermost channels."""
    compared = all(answer.difference is not None for answer in gates.values())
    if compared:
        axis.axvline(0, color="#666666", linewidth=1)
    for y, answer in enumerate(gates.values()):
        values = (answer.scale if answer.difference is None else answer.difference).numpy()
        for side, color, marker in ((values > 0, COLORS[2], "^"), (values <= 0, COLORS[1], "v")):
            if compared:
                axis.plot(values[side], np.full(side.sum(), y), marker, color=color, markersize=5, alpha=0.5, mew=0)
        if not compared:
            axis.plot(values, np.full(len(values), y), "o", color=COLORS[1], markersize=5, alpha=0.4, mew=0)
        if len(values) == 1:
            continue
        for ends, place, align in zip(answer.extremes(_NAMED), (6, -6), ("left", "right"), strict=True):
            if ends:
                text = ", ".join(str(end["channel"]) for end in ends)
                outermost = values[ends[0]["channel"]]
                offset = {"textcoords": "offset points", "ha": align, "va": "center", "fontsize": 8}
                axis.annotate(text, (outermost, y), (place, 0), **offset)
    axis.set_yticks(range(len(gates)), list(gates))
    axis.set_ylim(len(gates) - 0.4, -0.6)
    axis.margins(x=0.12)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_title("channels raised and lowered; numbers of the outermost" if compared else "scales of the channels")
    axis.set_xlabel("scale minus its mean over the data" if compared else "scale (no data to compare with)")


def _positions(figure: Any, axis: Any, explained: ExplainedImage, name: str) -> None:
    positions = explained.gates[name].positions
    assert positions is not None
    size = explained.pixels.shape[-2:]
    # Nearest neighbour: shows the positions of the map as squares.
    full = F.interpolate(positions[None, None], size=size, mode="nearest")[0, 0]
    axis.imshow(_gray(explained), cmap="gray", vmin=0, vmax=1)
    shown = axis.imshow(full.numpy(), cmap=_GATE_MAP, alpha=0.65)
    axis.set_axis_off()
    alike = ", all equal" if float(positions.max() - positions.min()) < 1e-6 else ""
    axis.set_title(f"{name}: mean scale\n{positions.shape[0]}x{positions.shape[1]} positions{alike}", fontsize=10)
    figure.colorbar(shown, ax=axis, shrink=0.8)
