"""Fetches weights from a file, a folder, an address, the Hugging Face hub (``hf:owner/name``) or ``timm:name``.

Downloads are cached, and verified if there is a hash: ``https://host/file#sha256=...``.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypedDict
from urllib.parse import urlsplit

from excite.errors import ExciteError, absence, first_line
from excite.files import cache_folder, sha256_of, written_aside
from excite.storage import is_remote
from excite.storage.connection import connect
from excite.storage.listing import exists
from excite.storage.staging import stage
from excite.text import tell

#: File names of weights in a repository or folder, best first.
FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "model.pth")
#: In our checkpoint folders: the moving average is preferred to the raw weights.
RUN_FILES = ("ema.safetensors", "model.safetensors")
CONFIG = "config.json"
#: (owner/name, file, revision) -> local path, or None if there is no such file.
Fetch = Callable[[str, str, str], Path | None]
_HASH = re.compile(r"(?P<url>[^#]+)#sha256=(?P<hash>[0-9a-fA-F]{64})")
_HF = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
_HUB = "https://huggingface.co"
_TIMM_OWNER = "timm"
#: Seconds within which the hub must answer to count as reachable.
REACHED_IN = 5.0


class NotReached(ExciteError):
    """The weights are not on this machine, and the network cannot be reached to download them."""


def local_weights(source: str | Path) -> Path:
    """The local path of weights, which are downloaded first if they are elsewhere.

    Args:
        source: a path; ``https://host/file`` or another address, with ``#sha256=HASH`` to verify it; or
            ``hf:owner/name``, optionally with ``/file`` and ``@revision``; or ``timm:name.tag``, timm's pretrained
            weights.

    Raises:
        ExciteError: the weights do not exist, cannot be reached, or have a wrong hash.
    """
    text = str(source)
    if text.startswith("hf:"):
        return _from_hub(text)
    if text.startswith("timm:"):
        return _from_timm(text)
    if is_remote(source):
        return _from_address(text)
    check_weights(text)
    path = Path(source)
    return _in_folder(path) if os.path.isdir(path) else path


def _is_prefix(path: Path) -> bool:
    """Whether it is a TensorFlow checkpoint, which is named by the common prefix of its files."""
    return os.path.isfile(f"{path}.index")


def check_weights(source: str) -> None:
    """Raise ExciteError if there are no weights at ``source``, judging by local names only; no address is asked."""
    path = Path(source)
    if is_remote(source) or source.startswith(("hf:", "timm:")) or os.path.exists(path) or _is_prefix(path):
        return
    otherwise = absence(path, "give a file, https://..., hf:owner/name or timm:name")
    raise ExciteError(f"there are no weights at {source!r}: {otherwise}")


def _in_folder(folder: Path) -> Path:
    """The weights in a folder; TensorFlow's ``checkpoint`` file stands for the folder itself."""
    for place in (folder, *sorted(folder.glob("checkpoints/step-*"), reverse=True)):
        for name in (*RUN_FILES, *FILES):
            if (place / name).is_file():
                return place / name
    if (folder / "checkpoint").is_file():
        return folder
    raise ExciteError(f"{folder} has no weights: none of {', '.join(FILES)}, and it is not a run folder")


def _from_address(url: str) -> Path:
    match = _HASH.fullmatch(url)
    if match is None:
        if "#" in url:
            raise ExciteError(f"{url}: # must be followed by sha256= and 64 hexadecimal digits")
        return stage(url).path
    wanted = match["hash"].lower()
    kept = cache_folder() / "weights" / wanted / match["url"].rstrip("/").rpartition("/")[2]
    if os.path.isfile(kept) and sha256_of(kept) == wanted:  # the hash proves it right: no network needed
        return kept
    fetched = stage(match["url"]).path
    found = sha256_of(fetched)
    if found != wanted:
        # Remove it from the cache, which may be what is damaged, so that the next attempt downloads it again.
        shutil.rmtree(fetched.parent.parent, ignore_errors=True)
        raise ExciteError(
            f"{match['url']} has the SHA-256 {found}, not {wanted}: it was changed or damaged, and was not used"
        )
    with written_aside(kept) as aside:
        _link_or_copy(fetched, aside)
    return kept


def _link_or_copy(source: Path, to: Path) -> None:
    try:
        os.link(source.resolve(), to)  # the hub's library has symbolic links, which would not work from here
    except OSError:  # a file system without hard links
        shutil.copyfile(source, to)


def _from_hub(source: str) -> Path:
    match = _HF.fullmatch(source)
    if match is None:
        raise ExciteError(f"{source!r} is not of the form hf:owner/name[/file][@revision]")
    repository, file = match["repo"], match["file"]
    revision = match["revision"] or "main"
    if (copied := _copied(repository, file)) is not None:
        return copied
    if (why := _cut_off()) is not None:
        return _cached(repository, file, revision) or _not_fetched(source, repository, file, revision, why)
    fetch = _by_library if _library_serves() else _by_address
    for name in (file,) if file else FILES:
        path = fetch(repository, name, revision)
        if path is not None:
            return _with_config(path, fetch, repository, revision) if name in FILES else path
    what = repr(file) if file else f"none of {', '.join(FILES)}"
    raise ExciteError(
        f"{source}: the hub has no such public repository, revision or file ({what}); check the spelling, or log in "
        "with `hf auth login` if it is private"
    )


def place_for(repository: str) -> Path:
    """The folder for a user's own copy of a repository ("owner/name"), on machines without a network."""
    return cache_folder() / "weights" / repository.replace("/", "--")


def _copied(repository: str, file: str | None) -> Path | None:
    """The user's own copy, or None."""
    names = (file,) if file else FILES
    return next((path for name in names if os.path.isfile(path := place_for(repository) / name)), None)


def _cut_off() -> str | None:
    """Why the hub cannot be reached, determined within seconds; None if it can, or if there is a proxy.

    The libraries would try six times, waiting longer each time.
    """
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # huggingface_hub obeys both
        if os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{switch} is set"
    parts = urlsplit(endpoint())
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    answer: list[str] = []

    def ask() -> None:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), REACHED_IN).close()
            answer.append("")
        except (OSError, ValueError, OverflowError) as error:
            answer.append(first_line(error))

    asking = threading.Thread(target=ask, daemon=True)  # a name lookup may take longer than anybody would wait
    asking.start()
    asking.join(REACHED_IN)
    return (answer[0] or None) if answer else f"no answer within {REACHED_IN:g} s"


def _cached(repository: str, file: str | None, revision: str) -> Path | None:
    """A file that huggingface_hub has downloaded before, or None."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in (file,) if file else FILES:
        try:
            found = try_to_load_from_cache(repository, name, revision=revision)
        except ValueError as error:
            raise ExciteError(f"hf:{repository} is no name of a repository: {first_line(error)}") from None
        if isinstance(found, str):
            return Path(found)
    return None


def _not_fetched(source: str, repository: str, file: str | None, revision: str, why: str) -> NoReturn:
    name = file or FILES[0]
    raise NotReached(
        f"{source} is not on this machine, and {endpoint()} cannot be reached ({why}): on a machine with a network, "
        f"download {endpoint()}/{repository}/resolve/{revision}/{name}, copy it here as "
        f"{place_for(repository) / name}, and run the same command again"
    )


def _check_hash(path: Path, repository: str, name: str) -> Path:
    """Check a file in the hub's cache against the SHA-256 that the hub gave for it, which is its name in the cache."""
    wanted = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", wanted) and (found := sha256_of(path)) != wanted:
        path.resolve().unlink(missing_ok=True)  # so that the next attempt downloads it again
        raise ExciteError(
            f"hf:{repository}: {name} has the SHA-256 {found}, not {wanted}: it was damaged, and was not used; run the "
            "same command again to download it again"
        )
    return path


def _with_config(path: Path, fetch: Fetch, repository: str, revision: str) -> Path:
    """The same weights in a folder with the repository's ``config.json``, if there is one.

    It gives the network's name, options and preprocessing. If it cannot be fetched, the weights are used without it,
    with a message.
    """
    if path.with_name(CONFIG).is_file():
        return path
    try:
        config = fetch(repository, CONFIG, revision)
    except ExciteError as error:
        tell(f"continuing without {CONFIG}, which describes the network and its images: {error}")
        return path
    if config is None or config.parent == path.parent:
        return path
    key = hashlib.sha256(f"{path}\0{sha256_of(config)}".encode()).hexdigest()[:16]
    folder = cache_folder() / "weights" / f"{repository.replace('/', '--')}-{key}"
    for source in (config, path):
        if not (folder / source.name).is_file():
            with written_aside(folder / source.name) as aside:
                _link_or_copy(source, aside)
    return folder / path.name


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def _library_serves() -> bool:
    """Whether to use huggingface_hub: it is installed, and the server is trusted.

    It limits neither the time nor the size of a download. That is acceptable for the hub's own servers, and for one
    that gets a token; any other HF_ENDPOINT is treated like any other address.
    """
    trusted = endpoint() == _HUB or bool(os.environ.get("HF_TOKEN"))
    alone = importlib.util.find_spec("aiohttp") is None  # without excite[remote] nothing else can fetch
    return (trusted or alone) and importlib.util.find_spec("huggingface_hub") is not None


def _by_library(repository: str, file: str, revision: str) -> Path | None:
    """Fetch with huggingface_hub: its cache, login and progress bar. None if there is no such file."""
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repository, file, revision=revision, endpoint=endpoint()))
        return _check_hash(path, repository, file)
    except hub_errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too: nothing came, nothing is cached
        raise _unreachable(repository, error) from error
    except (hub_errors.EntryNotFoundError, hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
        return None
    except (hub_errors.HfHubHTTPError, OSError, ValueError) as error:
        raise _unreachable(repository, error) from error


def _by_address(repository: str, file: str, revision: str) -> Path | None:
    """Fetch without huggingface_hub: the same address, with our own cache. None if there is no such file."""
    address = f"{endpoint()}/{repository}/resolve/{revision}/{file}"
    return stage(address).path if exists(connect(address)) else None


def _unreachable(repository: str, error: Exception) -> NotReached:
    return NotReached(
        f"hf:{repository} could not be downloaded from {endpoint()} ({first_line(error)}); check the network, or copy "
        "the file here and give its path"
    )


def _from_timm(source: str) -> Path:
    """timm's pretrained weights, whose repositories on the hub are named timm/NAME.TAG."""
    name = source.removeprefix("timm:")
    config = _timm_config(name)
    if config is None:
        if "." not in name:
            raise ExciteError(
                f"{source}: timm is not installed, so give the full name of the weights, such as "
                "timm:seresnet50.ra2_in1k"
            )
        return _from_hub(f"hf:{_TIMM_OWNER}/{name}")
    repository, url = config.get("hf_hub_id"), config.get("url")
    if repository:
        return _from_hub(f"hf:{repository}")
    if url:
        return _from_address(url)
    raise ExciteError(f"{source}: timm has no pretrained weights of that name")


class _TimmConfig(TypedDict, total=False):
    hf_hub_id: str | None
    url: str | None


def _timm_config(name: str) -> _TimmConfig | None:
    """timm's record of where its weights are, or None if timm is not installed or cannot be imported."""
    from excite.models.timm_models import check_timm_name, import_timm

    try:
        timm = import_timm()
    except ExciteError:
        return None
    check_timm_name(timm, name.partition(".")[0])
    config = timm.get_pretrained_cfg(name)
    return None if config is None else config.to_dict()
