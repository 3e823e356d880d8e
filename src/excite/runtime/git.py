"""Asks git about a folder in a way that does not let the folder make git run anything."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Settings with which a repository could make ``git status`` and the like start programs. They come from wherever the
#: folder came from: unpacking somebody's archive must not be enough to run their commands.
_NO_PROGRAMS = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.pager=cat",
    "core.sshCommand=false",
    "diff.external=",
    "safe.bareRepository=explicit",  # against a folder in the work tree that looks like a repository
)
#: Filters that a repository may set for its files (``filter.NAME.clean`` ...); nothing is started for "".
_FILTERS = ("clean", "smudge", "process")
_SECONDS = 10


@dataclass(frozen=True)
class Checkout:
    """The full hash of the checked-out commit, and whether tracked or untracked files differ from it."""

    commit: str
    changed: bool


def checkout(folder: Path, *, only: bool = False) -> Checkout | None:
    """The state of the checkout that a folder is in; None outside a checkout, or without git.

    Args:
        folder: the folder.
        only: count changes in this folder only, not in the whole checkout.
    """
    found = ask(folder, "rev-parse", "HEAD")
    if found is None:
        return None
    # Without looking into submodules, which have settings of their own.
    words = ("status", "--porcelain", "--ignore-submodules=dirty", *(("--", ".") if only else ()))
    return Checkout(found, bool(ask(folder, *words)))


def knows(folder: Path, name: str) -> bool:
    """Whether a file is under version control."""
    return bool(ask(folder, "ls-files", "--error-unmatch", "--", name))


def ask(folder: Path, *words: str) -> str | None:
    """The output of ``git WORDS`` in a folder; None if it fails, or without git."""
    settings = _git(folder, ("config", "--list", "--show-scope", "--name-only", "-z"), ())
    return None if settings is None else _git(folder, words, _without_filters(settings))


def _without_filters(settings: str) -> list[str]:
    """Settings that switch off the repository's own filters; the user's own (Git LFS) are kept.

    Args:
        settings: scope and name of each, all terminated by a zero byte.
    """
    parts = settings.split("\0")
    own = [name for scope, name in zip(parts[::2], parts[1::2], strict=False) if scope in ("local", "worktree")]
    drivers = {name[len("filter.") :].rpartition(".")[0] for name in own if name.startswith("filter.")}
    off = [f"filter.{driver}.{kind}=" for driver in sorted(drivers) for kind in _FILTERS]
    return off + [f"filter.{driver}.required=false" for driver in sorted(drivers)]


def _git(folder: Path, words: tuple[str, ...], more: list[str] | tuple[()]) -> str | None:
    settings = [word for setting in (*_NO_PROGRAMS, *more) for word in ("-c", setting)]
    # No refresh of the index, either: writing it would call a hook.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    environment.pop("GIT_EXTERNAL_DIFF", None)
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "--no-pager", *settings, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            env=environment,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
