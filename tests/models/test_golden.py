"""Five training steps per family still give the losses they gave."""

import json

import pytest

from .make_golden import FAMILIES, GOLDEN, losses

STORED = json.loads(GOLDEN.read_text())


def test_every_family_is_stored():
    assert list(STORED) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses(family):
    got = losses(family)
    assert got == pytest.approx(STORED[family], rel=1e-6)
    assert got[-1] < got[0]
