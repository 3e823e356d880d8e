"""Every source is whole, and one more takes a module and a line."""

import sys
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pytest
import torch

from excite.data import ArrayImages, open_data
from excite.data.catalog import SOURCES, Assumed, SourceFacts
from excite.data.config import DataConfig
from excite.data.contents import Contents
from excite.data.count import count_data
from excite.errors import ExciteError


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_all_that_it_needs(name):
    facts = SOURCES[name]
    assert callable(import_module(facts.reader).read_source)
    assert (facts.assumed is None) == (facts.root is None)  # what is not always here is counted as something
    config = DataConfig(source=name, image_size=32)
    counted = count_data(config)
    if facts.assumed is not None:
        assert (counted.train, counted.classes) == (facts.assumed.train, facts.assumed.classes)
        with pytest.raises(ExciteError, match=f"data.root is not set: give the path of the {name} data"):
            open_data(config)
    assert facts.what in DataConfig.model_fields["source"].description


def test_a_toy_source_is_a_module_and_a_line(monkeypatch):
    def read_source(data, root, least_classes):
        shades = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 4, 4) * 6
        return Contents(["dark", "light"], {"all": ArrayImages(shades, torch.arange(40) // 20)})

    monkeypatch.setitem(sys.modules, "toy", ModuleType("toy"))
    sys.modules["toy"].read_source = read_source
    facts = SourceFacts(what="shades", reader="toy", root=None, files=False, benchmark=False, assumed=None)
    monkeypatch.setitem(SOURCES, "toy", facts)
    config = DataConfig(source="digits", image_size=8, in_chans=1).model_copy(update={"source": "toy"})
    opened = open_data(config)
    assert opened.classes == ["dark", "light"]
    assert (len(opened.train) + len(opened.val), opened.train.images.shape[1:]) == (40, (1, 8, 8))
    counted = count_data(config)
    assert (counted.train, counted.val) == (len(opened.train), len(opened.val))
    missing = config.model_copy(update={"root": "nowhere"})
    monkeypatch.setitem(SOURCES, "toy", replace(facts, root="folder", assumed=Assumed("Shades", 7, 2)))
    assert count_data(missing).train == 7
