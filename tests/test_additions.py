"""What docs/development.md says of additions, each by a toy: a gate, an option of recipes, a measure, a foreign layout.

A data source is added in tests/data/test_catalog.py, an export format in tests/export/test_runtimes.py.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
import torch
from pydantic import Field

from excite.errors import ExciteError
from excite.gates import Gate, list_gates, register_gate
from excite.gates.registry import _GATES
from excite.measures import MEASURES, Measure
from excite.models import create_model
from excite.options import NEUTRAL, Says
from excite.recipe import Recipe, TrainConfig, load_recipe
from excite.training import train
from excite.weights.convert import convert
from excite.weights.layouts import LAYOUTS, TORCHVISION
from tests.training.small import metrics, small

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import layers  # noqa: E402


def test_a_toy_gate_is_one_class(monkeypatch):
    monkeypatch.setitem(_GATES, "toy", Gate)
    del _GATES["toy"]

    @register_gate("toy")
    class Toy(Gate):
        def __init__(self, channels, *, feature_size=None, strength: float = 0.5):
            super().__init__()
            self.strength = strength

        def scale(self, x):
            return torch.full(x.shape[:2], self.strength, dtype=x.dtype)

    assert "toy" in list_gates()
    image = torch.randn(2, 3, 32, 32)
    model = create_model("cifar_resnet20", gate="toy", strength=0.0).eval()
    assert model(image).shape == (2, 10)
    assert {type(block.gate) for block in model.gate_slots().values()} == {Toy}
    bare = create_model("cifar_resnet20", gate={"name": "toy", "strength": 1.0}).eval()
    bare.load_state_dict(model.state_dict())
    other = create_model("cifar_resnet20").eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(bare(image), other(image))
    with pytest.raises(ExciteError, match="has no option 'strenth'; did you mean 'strength'"):
        create_model("cifar_resnet20", gate="toy", strenth=1.0)


def test_a_toy_option_of_recipes_is_one_line():
    class ToyTrain(TrainConfig):
        toys: Annotated[int, NEUTRAL] = Field(3, ge=0, description="how many toys lie about")

    class ToyRecipe(Recipe):
        train: ToyTrain

    values = load_recipe("digits-seresnet20").model_dump(mode="json")
    recipe = ToyRecipe.from_dict(values)
    assert re.search(r"^  toys: 3 +# how many toys lie about$", recipe.to_yaml(), re.MULTILINE)
    assert "toys" not in recipe.to_yaml(changes_only=True)
    assert ToyRecipe.from_yaml(recipe.to_yaml()) == recipe
    assert Says("neutral") in ToyTrain.model_fields["toys"].metadata
    with pytest.raises(ExciteError, match="toys is -1"):
        ToyRecipe.from_dict({**values, "train": {**values["train"], "toys": -1}})


def test_a_toy_measure_is_one_line(monkeypatch, tmp_path):
    """The share of images that are 0 and said to be 0, from logits; it chooses, and is in the log and the results."""

    def zeros(logits, labels):
        return 100 * float(((logits.argmax(1) == 0) & (labels == 0)).mean())

    monkeypatch.setitem(MEASURES, "toy", Measure(label="toys", of_logits=zeros))
    recipe = small("limit_train=64", "epochs=2")
    recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"metric": "toy"})})
    monkeypatch.setattr("excite.training.loop.recipe_for", lambda *_, **__: recipe)
    results = train(recipe, run_dir=tmp_path, quiet=True)
    evals = metrics(tmp_path, "eval")
    assert results["best_epoch"] == max(evals, key=lambda r: (r["toy"], -r["loss"]))["epoch"]
    assert (results["metric"], results["toy"]) == ("toy", max(r["toy"] for r in evals))
    text = (tmp_path / "log.txt").read_text()
    assert "the best epoch is that of the highest toys (eval.metric=toy)" in text
    assert f"toys {evals[-1]['toy']:.2f} %" in text


def test_a_toy_layout_is_one_table(tmp_path, monkeypatch):
    """torchvision's names, each with "toy_" before it."""
    rows = tuple(replace(row, theirs=f"toy_{row.theirs}") for row in TORCHVISION.rows)
    toy = replace(TORCHVISION, key="toy", title="a toy's names", signature=(r"^toy_conv1\.weight$",), rows=rows)
    monkeypatch.setattr("excite.weights.prefixes.LAYOUTS", (toy, *LAYOUTS))
    model = create_model("resnet18", num_classes=3)
    torch.save({f"toy_{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "toy.pth")
    converted, loaded = convert(tmp_path / "toy.pth")
    assert loaded.foreign.layout is toy
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in converted.state_dict().items())


def test_the_picture_of_the_layers_is_todays():
    page = layers.PAGE.read_text(encoding="utf-8")
    assert page == layers.rewritten(page), "python docs/layers.py"
    named = {name for names in layers.layers() for name in names}
    there = {path.stem for path in (ROOT / "src" / "excite").iterdir() if path.suffix in ("", ".py")}
    assert there - named <= {"__init__", "__pycache__", "recipes", "py.typed"}


def test_what_the_page_of_development_names_is_there():
    page = layers.PAGE.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", page):
        assert (ROOT / path).exists(), path
    for test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page):
        assert f"def {test[1]}(" in (ROOT / test[0]).read_text(encoding="utf-8"), test
