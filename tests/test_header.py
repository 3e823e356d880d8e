"""Headers of weights files with one value changed: a working network or one sentence, in bounded time and memory."""

import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from excite import create_model, load, load_recipe
from excite.errors import ExciteError
from excite.grafting import graft
from excite.recipe import Recipe
from excite.training import train
from excite.training.start import init_from
from excite.weights.convert import convert
from excite.weights.grafted import load_grafted, save_grafted
from excite.weights.locate import GRAFTED
from excite.weights.own import read_own
from tests.bounded import bounded
from tests.training.small import small

#: Seconds for one file on a busy machine; each takes a tenth of one.
LONGEST = 15


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


#: What stands in the place of a value, or of a whole table or list.
OTHERS: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    10**9,
    10**30,
    0.5,
    -1e300,
    math.nan,
    math.inf,
    "",
    "x",
    "\x1b[31mred\u202e\n",
    "y" * 100_000,
    [],
    {},
    [1, "a", None],
    [0.5] * 3000,
    {"name": "se"},
    nested(40),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands: every value, list and table below the outermost one."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*at, key))


def changed(header: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The header with one value changed, taken away, or added."""
    for at in places(header):
        for other in [*OTHERS, "gone", "more"]:
            new = copy.deepcopy(header)
            holder = new
            for key in at[:-1]:
                holder = holder[key]
            if other == "gone":
                del holder[at[-1]]
            elif other == "more":
                if not isinstance(holder[at[-1]], list):
                    continue
                holder[at[-1]].append(copy.deepcopy(holder[at[-1]][-1]) if holder[at[-1]] else 1)
            else:
                holder[at[-1]] = other
            yield f"{'.'.join(map(str, at))} = {str(other)[:30]}", new


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """The weights of a real run."""
    recipe = small("epochs=1", "model.options={reduction: 8, gate_at: [layer2, layer3]}")
    return Path(train(recipe, out=tmp_path_factory.mktemp("runs"), quiet=True)["run"]) / "model.safetensors"


def header_of(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[key])


def use(path: Path) -> None:
    """Load it, classify, read its recipe."""
    predictor = load(path)
    size = min(predictor.preprocessing.image_size, 32)
    logits = predictor.logits(torch.zeros(1, predictor.preprocessing.in_chans, size, size, dtype=torch.uint8))
    assert logits.shape == (1, len(predictor.classes))


def read_recipe(path: Path) -> None:
    Recipe.from_dict(read_own(path).meta["recipe"])


def try_all(
    cases: list[tuple[str, dict[str, Any]]], path: Path, source: Path, key: str, use: Callable[[Path], None]
) -> tuple[int, int]:
    """How many loaded and how many were refused; everything else is a failure, and so is a long or split message."""
    tensors, loaded, refused = load_file(source), 0, 0
    longest, faults = 0.0, []
    with bounded(512, 20 * 60):
        for what, header in cases:
            save_file(tensors, path, metadata={"format": "pt", key: json.dumps(header)})
            before = time.perf_counter()
            try:
                use(path)
                loaded += 1
            except ExciteError as error:
                refused += 1
                text = str(error).replace(str(path), "")
                if "\n" in text or len(text) > 900:
                    faults.append(f"{what}: {len(text)} characters: {text[:200]!r}")
            except Exception as error:
                faults.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            longest = max(longest, time.perf_counter() - before)
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:40])
    assert longest < LONGEST
    return loaded, refused


def sample(cases: list[Any], count: int) -> list[Any]:
    return random.Random(0).sample(cases, min(count, len(cases)))


def split(header: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The changes of the recipe, and all others."""
    cases = list(changed(header))
    return [c for c in cases if c[0].startswith("recipe.")], [c for c in cases if not c[0].startswith("recipe.")]


@pytest.mark.parametrize("count", [50, pytest.param(10**9, marks=pytest.mark.slow)], ids=["some", "all"])
def test_one_changed_value_in_a_checkpoint(count, real, tmp_path):
    in_recipe, other = split(header_of(real, "excite"))
    assert len(other) > 600
    loaded, refused = try_all(sample(other, count), tmp_path / "x.safetensors", real, "excite", use)
    assert loaded > 3
    assert refused > 20
    loaded, refused = try_all(sample(in_recipe, 2 * count), tmp_path / "x.safetensors", real, "excite", read_recipe)
    assert loaded > 3
    assert refused > 40


@pytest.mark.parametrize("count", [30, pytest.param(10**9, marks=pytest.mark.slow)], ids=["some", "all"])
def test_one_changed_value_in_a_checkpoint_that_is_taken_over(count, real, tmp_path):
    """``train.init_from`` and ``excite convert`` read the same header another way."""

    def take_over(path: Path) -> None:
        init_from(create_model("cifar_resnet20", in_chans=1, gate="se", reduction=8), str(path))

    _, other = split(header_of(real, "excite"))
    model = [c for c in other if c[0].startswith(("model", "format_version", "preprocessing"))]
    for one in (take_over, lambda path: convert(path)):
        _, refused = try_all(sample(model, count), tmp_path / "x.safetensors", real, "excite", one)
        assert refused > 10


def test_what_a_changed_value_is_told_as(real, tmp_path):
    header = header_of(real, "excite")

    def told(*at_and_value: Any) -> str:
        new, path = copy.deepcopy(header), tmp_path / "x.safetensors"
        holder = new
        for key in at_and_value[:-2]:
            holder = holder[key]
        holder[at_and_value[-2]] = at_and_value[-1]
        save_file(load_file(real), path, metadata={"excite": json.dumps(new)})
        with pytest.raises(ExciteError) as caught:
            load(path)
        return str(caught.value).removeprefix(f"{path} ").removeprefix("says that excite wrote it, but its header is ")

    again = "; get or write the file again"
    assert told("step", -1) == f"damaged: step is -1, but should be greater than or equal to 0{again}"
    assert told("model", "args", "num_classes", 10**9) == (
        f"damaged: model.args.num_classes is 1000000000, but there are 10 classes{again}"
    )
    assert told("model", "args", "reduction", 10**9).startswith("says that args.reduction of its model is 1000000000")
    assert told("model", "args", "checkpoint_path", "/x.pth") == (
        f"damaged: model.args.checkpoint_path would download other weights{again}"
    )
    assert told("preprocessing", "std", [0]) == (
        f"damaged: preprocessing.std.0 is 0, but should be greater than 0{again}"
    )
    assert told("recipe", nested(500)) == f"damaged: it is nested more than 12 deep{again}"
    assert told("format_version", 7) == "has checkpoint format 7; this version of excite reads 1"
    assert "does not fit this model: " in told("model", "args", "reduction", 4)


def test_a_header_that_python_itself_gives_up_on(real, tmp_path):
    path = tmp_path / "x.safetensors"
    for text in ("[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "", "\x00", "null", '"text"', "{" + " " * (17 << 20)):
        save_file({"x": torch.zeros(1)}, path, metadata={"excite": text})
        with pytest.raises(ExciteError, match="its header is damaged"):
            load(path)


def test_a_billion_classes_take_no_memory(real, tmp_path):
    """Names and arguments agree with each other, and not with the tensors."""
    header = header_of(real, "excite")
    header["classes"] = [str(n) for n in range(300_000)]
    header["model"]["args"]["num_classes"] = 300_000
    save_file(load_file(real), tmp_path / "x.safetensors", metadata={"excite": json.dumps(header)})
    with bounded(256), pytest.raises(ExciteError, match="num_classes of its model is 300000, but no tensor"):
        load(tmp_path / "x.safetensors")


def test_keys_that_old_files_lack_and_later_ones_add(real, tmp_path):
    header = header_of(real, "excite")
    for key in ("metrics", "versions", "step", "epoch", "precision"):
        del header[key]
    del header["recipe"]["train"]["norm_precision"]
    del header["recipe"]["train"]["scale_lr_to"]
    header["something_new"] = {"a": [1, 2]}
    path = tmp_path / "x.safetensors"
    save_file(load_file(real), path, metadata={"excite": json.dumps(header)})
    use(path)
    read_recipe(path)
    diverged = header_of(real, "excite")
    diverged["metrics"] |= {"loss": math.nan}  # as former versions wrote it
    save_file(load_file(real), path, metadata={"excite": json.dumps(diverged)})
    assert load(path).meta["metrics"]["loss"] is None


# --- networks of other libraries ------------------------------------------------------------------------------------


class Small(nn.Module):
    """Somebody's network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head((x + self.second(x.relu())).mean((2, 3)))


def test_one_changed_value_in_a_grafted_file(tmp_path):
    source = tmp_path / "grafted.safetensors"
    gated = graft(Small(), {"name": "se", "reduction": 4}, example=torch.zeros(1, 3, 8, 8))
    save_grafted(gated, source, "mine")
    cases = list(changed(header_of(source, GRAFTED)))
    assert len(cases) > 200

    def use(path: Path) -> None:
        assert load_grafted(path, Small())(torch.zeros(1, 3, 8, 8)).shape == (1, 4)

    loaded, refused = try_all(cases, tmp_path / "x.safetensors", source, GRAFTED, use)
    assert loaded > 5
    assert refused > 150


def test_the_recipes_that_come_along_stand_in_headers_as_they_are():
    for name in ("digits-seresnet20", "folder-seresnet50"):
        values = load_recipe(name).model_dump(mode="json")
        assert json.loads(json.dumps(values)) == values
