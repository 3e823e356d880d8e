"""OpenSSF model signatures of run folders (https://github.com/sigstore/model-transparency), with a key on this machine.

The signature covers every file of the run but hidden ones, the log, and what differs from machine to machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from excite.errors import ExciteError, absence, first_line, install_line
from excite.files import written_aside

#: In a run folder.
SIGNATURE = "model.sig"
#: Not signed: these change when the run is uploaded, fetched or reported on.
_UNSIGNED = (SIGNATURE, "remote.json", "log.txt")


def sign(folder: Path, private_key: Path) -> Path:
    """Write ``model.sig`` with a private key (PEM, elliptic curve). Returns its path.

    Raises:
        ExciteError: model-signing is not installed, or the key cannot be used.
    """
    check_key(private_key)
    with _explained(f"{folder} could not be signed with {private_key}"):
        from model_signing import signing

        config = signing.Config().set_hashing_config(_hashing(folder))
        signer = config.use_elliptic_key_signer(private_key=private_key)
        with written_aside(folder / SIGNATURE) as aside:
            signer.sign(folder, aside)
    return folder / SIGNATURE


def check_signature(folder: Path, public_key: Path) -> None:
    """Check ``model.sig`` with a public key (PEM).

    Raises:
        ExciteError: model-signing is not installed, there is no signature, or it does not match.
    """
    check_key(public_key)
    if not (folder / SIGNATURE).is_file():
        raise ExciteError(f"{folder} has no {SIGNATURE}; sign it with: excite verify {folder} --sign --key PRIVATE.pem")
    with _explained(f"the signature of {folder} does not match {public_key}"):
        from model_signing import verifying

        config = verifying.Config().set_hashing_config(_hashing(folder))
        verifier = config.use_elliptic_key_verifier(public_key=public_key)
        verifier.verify(folder, folder / SIGNATURE)


def check_key(key: Path) -> None:
    """Raise ExciteError if there is no such file, or model-signing is not installed."""
    if not key.is_file():
        raise ExciteError(f"--key {key}: {absence(key)}")
    if find_spec("model_signing") is None:
        raise ExciteError(f"signatures need model-signing: {install_line('sign')}")


def _hashing(folder: Path) -> Any:
    from model_signing import hashing

    hidden = list(folder.rglob(".*"))
    return hashing.Config().set_ignored_paths(paths=[*(folder / name for name in _UNSIGNED), *hidden])


@contextmanager
def _explained(failed: str) -> Iterator[None]:
    try:
        yield
    except ExciteError:
        raise
    except Exception as error:  # each key and signature library raises its own
        raise ExciteError(f"{failed}: {first_line(error)}") from None
