"""timm's own tests of models on the networks that ``excite.timm`` registers.

timm's tests are not in its wheel. Get them once (a developer with internet), then run this through make:

    git clone --depth 1 --branch v1.0.31 https://github.com/huggingface/pytorch-image-models ../pytorch-image-models
    make test-timm-suite SUITE=../pytorch-image-models

What follows the folder goes to pytest: ``SUITE="../pytorch-image-models -k cifar"`` runs a part. The tests that need
TorchScript are left out, which excite refuses, and those of weights to download, which it has none of.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from excite.models.timm_models import import_timm

#: Parts of names of timm's tests that ask for what our networks do not have.
LEFT_OUT = ("torchscript", "pretrained", "inference", "naflexvit", "gemma4")


def only_ours(timm: Any) -> None:
    """Make timm's list of models, over which its tests are written, the list of ours."""
    import excite.timm  # noqa: F401 - registers

    listed = timm.list_models

    def list_models(filter: Any = "", *_: Any, exclude_filters: Any = "", **options: Any) -> list[str]:
        return listed("*.excite", exclude_filters=exclude_filters, include_tags=True)

    timm.list_models = list_models


def main(folder: str, *arguments: str) -> int:
    file = Path(folder) / "tests" / "test_models.py"
    if not file.is_file():
        sys.exit(f"there is no {file}: give the folder of a clone of timm (see the top of tests/timm_suite.py)")
    only_ours(import_timm())
    without = " and ".join(f"not {word}" for word in LEFT_OUT)
    chosen = list(arguments)
    if "-k" in chosen:
        at = chosen.index("-k")
        without = f"({chosen[at + 1]}) and {without}"
        del chosen[at : at + 2]
    # Neither our settings nor theirs: their markers and plugins are not ours.
    return pytest.main([str(file), "-c", "/dev/null", "-p", "no:cacheprovider", "-q", "-ra", "-k", without, *chosen])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("give the folder of a clone of timm: make test-timm-suite SUITE=FOLDER (see tests/timm_suite.py)")
    sys.exit(main(*sys.argv[1:]))
