"""What git says about a folder, asked so that the folder cannot make git run anything."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Settings by which a repository names programs that ``git status`` and its like would start. They are taken from
#: wherever the folder came from: unpacking somebody's archive must not be enough to run his commands.
_NO_PROGRAMS = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.pager=cat",
    "core.sshCommand=false",
    "diff.external=",
    "safe.bareRepository=explicit",  # a folder in the work tree that looks like a repository of its own
)
#: Of the filters that a repository may name for its files (``filter.NAME.clean`` ...): nothing is started for "".
_FILTERS = ("clean", "smudge", "process")
_SECONDS = 10


@dataclass(frozen=True)
class Checkout:
    """The commit that is checked out, in full, and whether files that git knows, or should, differ from it."""

    commit: str
    changed: bool


def checkout(folder: Path, *, only: bool = False) -> Checkout | None:
    """The state of the checkout that a folder lies in; None outside of one, or without git.

    Args:
        folder: where to ask.
        only: whether changes count in this folder only, and not in the whole checkout.
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
    """What ``git WORDS`` prints in a folder; None where it fails, or there is no git."""
    settings = _git(folder, ("config", "--list", "--show-scope", "--name-only", "-z"), ())
    return None if settings is None else _git(folder, words, _without_filters(settings))


def _without_filters(settings: str) -> list[str]:
    """Settings that switch off the filters that the repository itself has; the user's own ones (Git LFS) stay.

    Args:
        settings: scope and name of each, all ended by a zero byte.
    """
    parts = settings.split("\0")
    own = [name for scope, name in zip(parts[::2], parts[1::2], strict=False) if scope in ("local", "worktree")]
    drivers = {name[len("filter.") :].rpartition(".")[0] for name in own if name.startswith("filter.")}
    off = [f"filter.{driver}.{kind}=" for driver in sorted(drivers) for kind in _FILTERS]
    return off + [f"filter.{driver}.required=false" for driver in sorted(drivers)]


def _git(folder: Path, words: tuple[str, ...], more: list[str] | tuple[()]) -> str | None:
    settings = [word for setting in (*_NO_PROGRAMS, *more) for word in ("-c", setting)]
    # No refresh of the index either: writing it would call a hook.
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
