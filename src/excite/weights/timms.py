"""Finds out which timm network a file holds whose names no layout of ours knows, for the error message."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import torch
from torch import Tensor

from excite.errors import ExciteError
from excite.models.timm_models import classifier_name, import_timm

#: Names to try if none of the hints is one.
_MOST = 3


def network_of_timm(tensors: Mapping[str, Tensor], hints: Iterable[str]) -> str | None:
    """timm's name of the network with these tensors, for any number of classes.

    Args:
        tensors: tensors under timm's names.
        hints: names in the file, and the file's own name: only networks with such names are compared.

    Returns:
        None if none of them has these tensors, or timm is not installed.
    """
    try:
        timm = import_timm()
    except ExciteError:
        return None
    known = timm.list_models()
    for name in dict.fromkeys(name for hint in hints for name in _candidates(hint, known)):
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # some need more than a name
            continue
        own, head = model.state_dict(), classifier_name(model)
        wrong = {n for n in own if not n.endswith("num_batches_tracked")} ^ {
            n for n in tensors if not n.endswith("num_batches_tracked")
        }
        wrong |= {n for n, t in tensors.items() if n in own and own[n].shape != t.shape}
        if all(n.startswith(f"{head}.") for n in wrong):
            return name
    return None


def _candidates(hint: str, known: list[str]) -> list[str]:
    stem = PurePosixPath(hint.replace("\\", "/")).name
    stem = re.sub(r"\.(safetensors|pth|pt|bin|tar|ckpt)\b.*$", "", stem.removeprefix("timm:"))
    bases = dict.fromkeys((stem.partition(".")[0], re.sub(r"[-_][0-9a-f]{8}$", "", stem.partition(".")[0])))
    exact = [base for base in bases if base in known]
    close = [name for base in bases for name in difflib.get_close_matches(base, known, _MOST, 0.7)]
    return [*exact, *close]
