"""What the tests of foreign weights share."""

import pytest

from excite.models.catalog import VARIANTS

from .nets import TINY


@pytest.fixture
def tiny(monkeypatch):
    """Puts small networks into the catalog, under the names of ``TINY``."""
    for name, (arch, gate) in TINY.items():
        variant = {"family": "resnet", "arch": arch, "gate": gate, "defaults": {"image_size": 32}}
        monkeypatch.setitem(VARIANTS, name, variant)
