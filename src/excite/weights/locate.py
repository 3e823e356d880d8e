"""What a source of weights is: whose, where its files are, which run it belongs to. Ours are recognised first."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from excite.storage import is_remote
from excite.weights.grafted import is_grafted_file
from excite.weights.own import find_weights

FOREIGN_SUFFIXES = (".ckpt", ".caffemodel", ".pth", ".pt", ".bin", ".tar", ".pkl", ".index")


@dataclass(frozen=True)
class Located:
    """What a source is.

    Attributes:
        source: what was given: a run folder, a checkpoint, an address, ``hf:owner/name`` ...
        kind: "own": a weights file of this package. "grafted": another library's network with gates of ours (see
            :mod:`excite.weights.grafted`). "foreign": another system's weights, which may have to be fetched still.
        path: of ours the weights file; of others the source as a path (TensorFlow's is a prefix of files).
        run: the run folder, where the source is one on this machine.
    """

    source: str
    kind: Literal["own", "grafted", "foreign"]
    path: Path
    run: Path | None

    def digest(self) -> str:
        """sha256 (hex) of the weights file, what ``sha256sum`` gives; of a folder's or prefix's files, all of them.

        Empty for weights that are no file here, but at a hub.
        """
        path = self.path
        files = [path] if path.is_file() else sorted(p for p in path.parent.glob(f"{path.name}*") if p.is_file())
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)  # goes on with what the files before have given
        return digest.hexdigest() if files else ""


def locate(source: str | Path) -> Located:
    """Find out what ``source`` is; of ours at an address, the weights are fetched.

    Raises:
        ExciteError: there is nothing there, and it does not look like another system's.
    """
    run = run_folder(source)
    if not is_foreign(source):
        return Located(str(source), "own", find_weights(source), run)
    return Located(str(source), "grafted" if is_grafted_file(source) else "foreign", Path(source), run)


def run_folder(source: str | Path) -> Path | None:
    """``source`` as a path where it is a run folder on this machine, else None."""
    path = Path(source)
    return path if not is_remote(source) and (path / "recipe.yaml").is_file() else None


def is_foreign(source: str | Path) -> bool:
    """Whether a source is something else than a run folder or a weights file of this package.

    Only names and a file's header are looked at. What is not there counts as ours, whose reader then says so.
    """
    text = str(source)
    if text.startswith(("hf:", "timm:")) or "#sha256=" in text:
        return True
    if is_remote(source):
        return Path(urlsplit(text).path).suffix.lower() in FOREIGN_SUFFIXES
    path = Path(source)
    if path.is_dir():
        own = (path / "recipe.yaml").exists() or (path / "checkpoints").is_dir()
        files = [file for file in path.iterdir() if file.is_file()]
        own = own or any(_has_own_header(file) for file in files if file.suffix == ".safetensors")
        known = (*FOREIGN_SUFFIXES, ".safetensors")
        return not own and any(file.suffix in known or file.name == "checkpoint" for file in files)
    if path.is_file():
        return not _has_own_header(path)
    return path.with_name(f"{path.name}.index").is_file()


def _has_own_header(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "excite" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
