"""What the tests of foreign weights share."""

import sys
from pathlib import Path

import pytest

from excite.models.catalog import VARIANTS

from .nets import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(monkeypatch):
    """Puts small networks into the catalog, under the names of ``TINY``."""
    for name, (arch, gate) in TINY.items():
        variant = {"family": "resnet", "arch": arch, "gate": gate, "defaults": {"image_size": 32}}
        monkeypatch.setitem(VARIANTS, name, variant)


@pytest.fixture(scope="session")
def timm():
    if not (ROOT / ".peers" / "timm").is_dir():
        pytest.skip("timm is not in .peers (make bench-cpu puts it there)")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from peers import import_timm
    finally:
        sys.path.pop(0)
    return import_timm()
