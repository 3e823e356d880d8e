"""Finds out what a source of weights is: whose weights, where its files are, which run it belongs to.

It does not import PyTorch, so that a missing source is reported before that.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from excite.errors import ExciteError, absence
from excite.storage.address import is_remote, parts_of

#: The files of a run folder and of its checkpoints.
WEIGHTS, EMA, STATE = "model.safetensors", "ema.safetensors", "state.pt"
#: In a checkpoint folder: the size and SHA-256 of its other files. Folders of versions up to 0.2 have none.
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{8,})")
#: Key in the header of other libraries' networks with our gates.
GRAFTED = "excite_graft"

FOREIGN_SUFFIXES = (".ckpt", ".caffemodel", ".pth", ".pt", ".bin", ".tar", ".pkl", ".index")


@dataclass(frozen=True)
class Located:
    """What a source is.

    Attributes:
        source: as given: a run folder, a checkpoint, an address, ``hf:owner/name`` ...
        kind: "own": a weights file of this package. "grafted": another library's network with our gates (see
            :mod:`excite.weights.grafted`). "foreign": another system's weights, which may not be downloaded yet.
        path: of ours, the weights file; of others, the source as a path (TensorFlow's is a prefix of files).
        run: the run folder, if the source is one on this machine.
    """

    source: str
    kind: Literal["own", "grafted", "foreign"]
    path: Path
    run: Path | None

    def digest(self) -> str:
        """SHA-256 (hex) of the weights file, as by ``sha256sum``; for a folder or a prefix, of all its files.

        Empty for weights that are not a local file but on a hub.
        """
        path = self.path
        files = [path] if path.is_file() else sorted(p for p in path.parent.glob(f"{path.name}*") if p.is_file())
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)  # continues the digest of the previous files
        return digest.hexdigest() if files else ""


def locate(source: str | Path) -> Located:
    """Find out what ``source`` is. Our own weights at an address are downloaded.

    Raises:
        ExciteError: there is nothing there, and it does not look like another system's weights.
    """
    run = run_folder(source)
    if not is_foreign(source):
        return Located(str(source), "own", find_weights(source), run)
    return Located(str(source), "grafted" if is_grafted_file(source) else "foreign", Path(source), run)


def step_folder(run: Path, step: int) -> Path:
    """The checkpoint folder of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps with a checkpoint folder, complete or not, ascending."""
    found = (_STEP.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*") if path.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def saved_steps(run: Path) -> list[int]:
    """The steps with a complete checkpoint, ascending."""
    return [step for step in checkpoint_steps(run) if (step_folder(run, step) / STATE).is_file()]


def split_step(source: str) -> tuple[str, int | None]:
    """A run, and the step of one of its checkpoints, from ``RUN``, ``RUN@STEP`` or a checkpoint folder of it."""
    path = Path(source)
    folder = None if is_remote(source) or not os.path.isdir(source) else _STEP.fullmatch(path.resolve().name)
    if folder is not None and path.resolve().parent.name == "checkpoints":
        run = path.parent.parent if path.parent.name == "checkpoints" else path.resolve().parents[1]
        return str(run), int(folder.group(1))
    run_name, at, step = source.rpartition("@")
    if at and run_name and step.isdecimal() and step.isascii() and (is_remote(source) or not os.path.exists(source)):
        return run_name, int(step)
    return source, None


def join_step(run: str | Path, step: int | None) -> str:
    """What :func:`split_step` splits: ``RUN@STEP``, or ``RUN`` without a step."""
    return str(run) if step is None else f"{run}@{step}"


def find_weights(source: str | Path) -> Path:
    """The weights file for ``source``: a run folder, a checkpoint folder, or the file itself.

    For a run folder, these are its best weights so far, or those of its latest checkpoint if none was evaluated yet.
    For a checkpoint folder, they are the moving average if there is one, else the raw weights.

    Raises:
        ExciteError: there is no such file.
    """
    path = Path(source)
    if isinstance(source, str) and is_remote(source):
        from excite.storage import weights_at  # 0.1 s, for addresses alone

        path = weights_at(source, (EMA, WEIGHTS))
    if os.path.isfile(path):  # unlike Path.is_file, it takes any text
        return path
    if not os.path.exists(path):
        raise ExciteError(f"there is no run folder or checkpoint {str(source)!r}: {absence(path)}")
    steps = saved_steps(path)
    folders = [path, *([step_folder(path, steps[-1])] if steps else [])]
    for folder in folders:
        for name in (EMA, WEIGHTS):
            if (folder / name).is_file():
                return folder / name
    raise ExciteError(
        f"{path} has no {WEIGHTS} and no checkpoints: it is not a run folder, or nothing has been saved in it yet"
    )


def check_there(source: str) -> None:
    """Raise ExciteError if there is nothing at ``source``, judging by local names only; no address or hub is asked."""
    if is_remote(source) or source.startswith(("hf:", "timm:")) or os.path.isfile(source) or is_foreign(source):
        return
    find_weights(source)


def run_folder(source: str | Path) -> Path | None:
    """``source`` as a path if it is a run folder on this machine, else None."""
    path = Path(source)
    return path if not is_remote(source) and os.path.isfile(path / "recipe.yaml") else None


def is_foreign(source: str | Path) -> bool:
    """Whether a source is something other than a run folder or a weights file of this package.

    Only names and a file's header are examined. A missing file counts as ours; our reader then reports it.
    """
    text = str(source)
    if text.startswith(("hf:", "timm:")) or "#sha256=" in text:
        return True
    if is_remote(source):
        return Path(parts_of(text).path).suffix.lower() in FOREIGN_SUFFIXES
    path = Path(source)
    if os.path.isdir(path):
        own = (path / "recipe.yaml").exists() or (path / "checkpoints").is_dir()
        files = [file for file in path.iterdir() if file.is_file()]
        own = own or any(_has_own_header(file) for file in files if file.suffix == ".safetensors")
        known = (*FOREIGN_SUFFIXES, ".safetensors")
        return not own and any(file.suffix in known or file.name == "checkpoint" for file in files)
    if os.path.isfile(path):
        return not _has_own_header(path)
    return os.path.isfile(f"{path}.index")


def _has_own_header(path: Path) -> bool:
    return _has_header(path, "excite")


def is_grafted_file(path: str | Path) -> bool:
    """Whether ``excite.weights.grafted.save_grafted`` wrote this file."""
    return _has_header(path, GRAFTED)


def _has_header(path: str | Path, key: str) -> bool:
    try:
        with safe_open(path, framework="np") as file:
            return key in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):  # the last: a text that is no path
        return False
