"""`excite twins`: how a gate gets into a recipe, what runs in which order, what survives, and what is reported."""

import copy
import csv
import json
import math
import os
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from excite.errors import ExciteError
from excite.gates import GatherExcite, SqueezeExcite
from excite.models import VARIANTS, create_model, list_models, model_options
from excite.recipe import ModelConfig, list_recipes, load_recipe
from excite.runtime.device import seed_everything
from excite.training import train
from excite.training.stop import Interrupted
from excite.twins import run_twins, runner
from excite.twins.beside import compared, figures
from excite.twins.figure import draw
from excite.twins.plan import DEFAULT_GATES, Plan, expanded, load_plan, run_name, with_gate
from excite.twins.report import _row, collect, markdown, notes, table, write_report
from excite.twins.statistics import (
    _half_width,
    mean_interval,
    mean_sd,
    mean_sequence,
    seeds_needed,
    student_t,
    verdict,
)
from excite.weights.locate import saved_steps
from tests.training.small import same, small, tensors

ROOT = Path(__file__).parents[1]

# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99, 0.999])
def test_students_quantile_agrees_with_its_closed_forms(confidence):
    """Degrees of freedom 1, 2 and 4 have formulas of their own; many have Cornish and Fisher's expansion."""
    assert student_t(confidence, 1) == pytest.approx(math.tan(math.pi * confidence / 2), rel=1e-12)
    assert student_t(confidence, 2) == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)), rel=1e-12)
    alpha = 1 - confidence**2
    four = 2 * math.sqrt(math.cos(math.acos(math.sqrt(alpha)) / 3) / math.sqrt(alpha) - 1)
    assert student_t(confidence, 4) == pytest.approx(four, rel=1e-12)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    many = z + (z**3 + z) / (4 * 1000) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * 1000**2)  # Abramowitz & Stegun 26.7.5
    assert student_t(confidence, 1000) == pytest.approx(many, rel=1e-7)


def test_the_paired_interval_is_that_of_students_own_example():
    """Student's sleep data (Biometrika 6, 1908), for which R's manual prints t.test(..., paired = TRUE)."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = mean_interval([b - a for a, b in zip(first, second, strict=True)], 0.95)
    assert found == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)


def test_the_interval_of_folds_is_that_of_nadeau_and_bengio():
    """t x sqrt((1 / n + test / train) x variance), with five folds thus 0.2 + 0.25."""
    values = [1.0, 2.5, 0.5, 3.0, 1.5]
    mean, low, high = mean_interval(values, 0.95, 1 / 4)
    half = 2.7764451051977987 * math.sqrt((0.2 + 0.25) * statistics.variance(values))
    assert (mean, low, high) == pytest.approx((1.7, 1.7 - half, 1.7 + half), rel=1e-9)
    plain = mean_interval(values, 0.95)
    assert (high - low) / (plain[2] - plain[1]) == pytest.approx(1.5)


def test_too_few_values_have_no_spread():
    assert mean_sd([]) == (None, None)
    assert mean_sd([3.0]) == (3.0, None)
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_interval([], 0.95) == (None, None, None)
    assert mean_interval([3.0], 0.95) == (3.0, None, None)


# --- gates in recipes -----------------------------------------------------------------------------------------------


#: The catalogue has these nets with one gate only.
ALONE = ("senet154", "cifar_seresnet110_tf", "sknet50", "sknet101")


@pytest.mark.parametrize("label", DEFAULT_GATES)
def test_every_model_of_the_catalogue_has_its_twins(label):
    for name in list_models():
        own = ModelConfig(name=name, options={"bn_eps": 1e-4})
        twin = with_gate(own, label)
        assert with_gate(twin, label) == twin
        before, after = VARIANTS[name], VARIANTS[twin.name]
        assert {**before, "gate": None} == {**after, "gate": None}
        if name in ALONE:
            continue
        assert twin.options == own.options  # the name says it all
        wanted = {"name": "ge", "variant": label.removeprefix("ge_")} if label[0] == "g" else {"name": label}
        assert after["gate"] == (None if label == "none" else wanted)


@pytest.mark.parametrize(
    "name",
    [
        "cifar_seresnet20",
        pytest.param("cifar_seresnet110_tf", marks=pytest.mark.slow),
        pytest.param("geresnet50_theta", marks=pytest.mark.slow),
        pytest.param("senet154", marks=pytest.mark.slow),
    ],
)
def test_twins_are_the_same_network_but_for_their_gates(name):
    def build(model: ModelConfig) -> torch.nn.Module:
        with torch.device("meta"):
            return create_model(model.name, **model.options)

    def body(net: torch.nn.Module) -> dict[str, Any]:
        return {key: value.shape for key, value in net.state_dict().items() if "gate." not in key}

    before = body(build(ModelConfig(name=name)))
    for label in DEFAULT_GATES:
        model = build(with_gate(ModelConfig(name=name), label))
        gates = [m for m in model.modules() if isinstance(m, SqueezeExcite | GatherExcite)]
        assert {type(g) for g in gates} == {"n": set(), "s": {SqueezeExcite}, "g": {GatherExcite}}[label[0]]
        assert {f"ge_{g.variant}" for g in gates if isinstance(g, GatherExcite)} <= {label}
        assert body(model) == before


def test_every_recipe_has_its_twins():
    for name in list_recipes():
        recipe = load_recipe(name)
        for label in DEFAULT_GATES:
            twin = Plan(recipe, (label,), (0,)).twin(label, 0)
            assert set(twin.model.options) - {"gate"} <= set(
                model_options(twin.model.name, twin.model.options.get("gate"))
            )
            others = {"model": recipe.model, "train": recipe.train}
            assert twin.model_copy(update=others) == recipe


@pytest.mark.parametrize(("label", "all_of_them"), [("se", False), ("ge_theta_minus", True), ("ge_theta_plus", False)])
def test_which_weights_of_twins_start_equal(label, all_of_them):
    """As docs/twins.md says: the layers in front of the first gate, or all where the gate draws no weights."""
    plan = Plan(small(), ("none", label), (7,))
    nets = []
    for gate in plan.gates:
        seed_everything(7)
        model = plan.twin(gate, 7).model
        nets.append(dict(create_model(model.name, **model.options).named_parameters()))
    none, gated = nets
    drawn = [name for name, tensor in none.items() if tensor.ndim > 1]
    equal = [name for name in drawn if torch.equal(none[name], gated[name])]
    assert equal == (drawn if all_of_them else ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"])


def test_a_recipes_gate_options_go_to_the_gates_that_have_them():
    own = ModelConfig(
        name="cifar_seresnet20", drop_rate=0.1, options={"reduction": 8, "gate_position": "pre", "bn_eps": 1e-3}
    )
    body = {"gate_position": "pre", "bn_eps": 1e-3}
    expected = {
        "none": ("cifar_resnet20", {"bn_eps": 1e-3}),
        "se": ("cifar_seresnet20", own.options),
        "se:reduction=4": ("cifar_seresnet20", {**body, "reduction": 4}),
        "ge_theta_minus": ("cifar_geresnet20_theta_minus", body),
        "ge_theta:extent=4": ("cifar_geresnet20_theta", {**body, "extent": 4}),
        "ge_theta_plus": ("cifar_geresnet20_theta_plus", {**body, "reduction": 8}),
        "ge_theta_plus:bias=false": ("cifar_geresnet20_theta_plus", {**body, "reduction": 8, "gate_bias": False}),
    }
    for label, (name, options) in expected.items():
        twin = with_gate(own, label)
        assert (twin.name, twin.options, twin.drop_rate) == (name, options, 0.1)
        with torch.device("meta"):
            create_model(twin.name, **twin.options)
    own = ModelConfig(name="cifar_resnet20", options={"gate": {"name": "ge", "variant": "theta", "extent": 2}})
    assert with_gate(own, "ge_theta") == own
    assert with_gate(own, "none") == ModelConfig(name="cifar_resnet20")
    assert with_gate(own, "ge_theta_minus").options == {"extent": 2}
    assert with_gate(own, "se") == ModelConfig(name="cifar_seresnet20")


def test_gates_in_some_places_only():
    model = ModelConfig(name="cifar_resnet20")
    twin = with_gate(model, "se:reduction=8@layer2+layer3.0")
    assert (twin.name, twin.options) == ("cifar_seresnet20", {"reduction": 8, "gate_at": ["layer2", "layer3.0"]})
    with torch.device("meta"):
        slots = {n: m.gate is not None for n, m in create_model(twin.name, **twin.options).gate_slots().items()}
    assert [name for name, there in slots.items() if there] == ["layer2.0", "layer2.1", "layer2.2", "layer3.0"]
    assert with_gate(twin, "se:reduction=8").options["gate_at"] == ["layer2", "layer3.0"], "the recipe's own"
    assert with_gate(twin, "none") == model
    assert with_gate(twin, "eca@layer1").options["gate_at"] == ["layer1"]
    assert run_name("se@layer2+layer3.0", 3) == "se@layer2+layer3.0-seed3"
    plan = Plan(small(), ("none", "se", "se@layer3"), (0,))
    plan.check()
    with pytest.raises(ExciteError, match="the gates 'se' and 'se@layer3' are the same"):
        Plan(small("model.options={gate_at: [layer3]}"), ("se", "se@layer3"), (0,)).check()


def test_all_placements_by_order_with_one_label():
    model = ModelConfig(name="cifar_resnet20", options={"pretrained": "nowhere"})
    assert expanded(["none", "se:reduction=8@auto", "eca@layer3"], model) == (
        "none",
        "se:reduction=8",
        "se:reduction=8@first",
        "se:reduction=8@last",
        "se:reduction=8@last2",
        "se:reduction=8@every2",
        "eca@layer3",
    )
    assert with_gate(model, "se@last2").options["gate_at"] == ["last2"]
    assert expanded(["se@auto"], ModelConfig(name="cifar_seresnet20", options={"gate_at": ["layer1"]}))[0] == "se"
    with pytest.raises(ExciteError, match="'none@auto': none takes no places"):
        expanded(["none@auto"], model)


def test_what_a_gate_changes_beside_accuracy(report, tmp_path):
    told = figures({"calibration": {"ece": 3.5, "held_out": {"nll_after": 0.5}}, "robustness": {"mean_top1": 60}})
    assert told == {"ece": 3.5, "scaled_nll": 0.5, "robust_top1": 60.0}
    assert figures({"calibration": {"ece": None, "held_out": None}, "robustness": None}) == figures(None) == {}
    values = {"none": [10.0, 12.0, 11.0], "se": [9.0, 11.5, 10.2, 99.0]}
    runs = [{"gate": gate, "seed": seed, "ece": v} for gate, each in values.items() for seed, v in enumerate(each)]
    plan = Plan(small(), ("none", "se"), (0, 1, 2, 3))
    assert compared(runs, "none", plan, 0.95)["ece"]["difference"] is None
    se = compared(runs, "se", plan, 0.95)
    assert list(se) == ["ece"]
    assert (se["ece"]["pairs"], se["ece"]["mean"]) == (3, pytest.approx(32.425)), "the fourth has no partner"
    ends = mean_interval([-1.0, -0.5, 10.2 - 11.0], 0.95)
    assert (se["ece"]["difference"], se["ece"]["difference_low"], se["ece"]["difference_high"]) == pytest.approx(ends)
    assert "beside" not in report["rows"][0]
    assert "Beside accuracy" not in markdown(report)
    more = copy.deepcopy(report)
    for row in more["rows"]:
        row["beside"] = compared(runs, "none" if row["gate"] == "none" else "se", plan, 0.95)
    write_report(more, tmp_path)
    text = (tmp_path / "twins.md").read_text()
    assert "| gate | calibration error % | calibration: difference to none |" in text
    assert "32.42 ± 44.40 | -0.77 [-1.39, -0.14] |" in text
    assert "for one measure each" in text
    header, first = (tmp_path / "twins.csv").read_text().splitlines()[:2]
    assert {"ece_mean", "ece_difference_low"} < set(header.split(","))
    assert "{" not in first


def test_points_for_each_millisecond(report, tmp_path):
    rows = report["rows"]
    assert "points / ms" not in table(report)[0]
    gates = [row["gate"] for row in rows]
    placed = copy.deepcopy(report)
    placed["gates"] = [*gates[:-1], f"{gates[-1]}@layer3"]
    base, last = placed["rows"][0], placed["rows"][-1]
    base |= {"latency_low": 1.9, "latency_ms": 2.0, "latency_high": 2.1}
    last |= {"difference": 0.3, "difference_low": 0.1, "difference_high": 0.5, "latency_ms": 2.5}
    assert placed["baseline"] == base["gate"]
    assert table(placed)[-1]["points / ms"] == "+0.60 [+0.20, +1.00]"
    last |= {"difference_low": None, "difference_high": None}
    assert table(placed)[-1]["points / ms"] == "+0.60 [no interval]"
    last["latency_ms"] = 2.1
    assert table(placed)[-1]["points / ms"] == table(placed)[0]["points / ms"] == "-"
    assert "Points / ms" in " ".join(notes(placed))


def test_a_gate_without_a_name_in_the_catalogue_becomes_an_option():
    twin = with_gate(ModelConfig(name="cifar_seresnet110_tf"), "ge_theta_plus")
    gate = {"name": "ge", "variant": "theta_plus", "bias": False}  # as the recipe's own gate
    assert (twin.name, twin.options) == ("cifar_seresnet110_tf", {"gate": gate})


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("see", "unknown gate 'see'; did you mean 'se'.*known: none, cbam, .*se, .*ge_theta_minus"),
        ("ge_theta_plu", "did you mean 'ge_theta_plus'"),
        ("", "unknown gate ''"),
        ("none:reduction=8", "none takes no options"),
        ("none@layer3", "none takes no places"),
        ("none@auto", "none takes no places"),
        ("se@", "'se@': after @ come names of blocks or stages, joined by"),
        ("se@layer3+", "after @ come names of blocks"),
        ("se@../x", "after @ come names of blocks"),
        ("se:reductoin=8", r"'se' has no option 'reductoin=8'; did you mean 'reduction'"),
        ("se:reduction", r"has no option 'reduction'.*NAME:OPTION=VALUE"),
        ("se:extent=4", "'se' has no option 'extent=4'"),
        ("ge_theta:variant=theta", "has no option 'variant=theta'"),
        ("se:reduction=0", "'se:reduction=0': reduction must be a whole number"),
        ("ge_theta:extent=3", "the extent of the gate 'ge' must be one of 2, 4, 8"),
        ("ge_theta:reduction=8", "theta takes no reduction, because it has no bottleneck"),
        ("se:reduction=../8", "options must be words and numbers"),
    ],
)
def test_a_wrong_gate_is_one_sentence(label, message):
    with pytest.raises(ExciteError, match=message):
        with_gate(ModelConfig(name="cifar_resnet20"), label)


def test_seeds_take_turns_last_and_gates_first():
    plan = Plan(small(), ("none", "se"), (3, 4))
    assert plan.runs() == [("none", 3), ("se", 3), ("none", 4), ("se", 4)]
    twin = plan.twin("none", 4)
    assert (twin.model.name, twin.train.seed) == ("cifar_resnet20", 4)
    assert twin.model_copy(update={"model": small().model, "train": small().train}) == small()
    assert run_name("se:reduction=8", 3) == "se-reduction=8-seed3"


# --- the experiment, with a stand-in for the training -----------------------------------------------------------------

STAND_IN = """
import json, os, sys, time
task, *words = sys.argv[1:]
calls = open("calls.txt", "a")
print(task, *words, file=calls, flush=True)
if task == "check":
    if os.environ.get("CHECK"):
        sys.exit("error: " + os.environ["CHECK"])
    sys.exit()
if task == "latency":
    gates = json.load(sys.stdin)["runs"]
    ms = {gate: [1.0, 2.0 + i, 9.0] for i, gate in enumerate(gates)}
    print(json.dumps({"rounds": 7, "passes": 5, "ms": ms, "device": "stand-in", "precision": "fp32"}))
    sys.exit()
recipe, option, run = words[:3]
assert option == "--run-dir"
name = os.path.basename(run)
fate = os.environ.get(name.replace("-", "_"), "")
if fate == "early":
    sys.exit("error: data.root does not exist")
os.makedirs(run, exist_ok=True)
open(run + "/recipe.yaml", "w").write(open(recipe).read())
if fate == "nan":
    sys.exit("Warning: beware\\nerror: the loss is nan at step 3")
if fate == "stop":
    os.makedirs(run + "/checkpoints/step-00000003", exist_ok=True)
    open(run + "/checkpoints/step-00000003/state.pt", "w").close()
    os.kill(os.getppid(), 2)  # as Ctrl-C in the terminal; the trainings get it from the experiment
    time.sleep(60)
gate, seed = name.replace("-fold", "-seed").split("-seed")
top1 = 90.0 + 2 * (gate != "none") + int(seed) * (1 + (gate != "none"))
results = dict(run=run, recipe="small", model=gate, params_m=0.1, gmacs=0.2, devices=1, device="stand-in",
    precision="fp32", images_per_second=100.0 + int(seed), top1=top1 + 1, last_top1=top1, images=100, epochs=3,
    memory_gb=0.5 + int(seed), train_seconds=4.0, report=dict(about=dict(source=run), confusion=[[1, 2], [3, 4]]))
json.dump(results, open(run + "/results.json", "w"))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replaces the processes that train and measure; ``stand_in()`` gives what they were asked for since last time."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    (tmp_path / "small.yaml").write_text(small().to_yaml())
    monkeypatch.setattr("excite.twins.figure.draw", lambda report, path: path.touch())
    monkeypatch.setattr(runner, "_worker", lambda *words: [sys.executable, "-S", str(script), *words])
    monkeypatch.chdir(tmp_path)
    calls = tmp_path / "calls.txt"

    def asked() -> list[str]:
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return [re.sub(r".*/(\S+-(?:seed|fold)\d+).*", r"\1", line) for line in lines]

    return asked


def test_what_runs_in_which_order_and_only_once(stand_in, tmp_path, capsys):
    report = run_twins("small.yaml", gates=["none", "se"], seeds=2, out="exp")
    order = ["none-seed0", "se-seed0", "none-seed1", "se-seed1"]
    assert stand_in() == ["check", *order, "latency"]
    printed = capsys.readouterr().out
    assert "run 2/4  se, seed 0: top-1 92.00 % (last epoch), 100 img/s" in printed
    assert printed.count("│ none") == 4  # a table after each run
    assert "run 3/4  none, seed 1: training ...  (about 0:00:08 left)" in printed  # two of 4 seconds each
    assert [r["run"] for r in report["runs"]] == [f"exp/{name}" for name in order]
    assert report["missing"] == report["failures"] == []
    files = {
        "latency.json",
        "results.json",
        "runs.csv",
        "twins.csv",
        "twins.json",
        "twins.md",
        "twins.png",
        "twins.svg",
    }
    assert {p.name for p in Path("exp").iterdir()} == {".lock", *order, *files}
    assert json.loads(Path("exp/results.json").read_text()) == report
    assert all("report" not in r for r in report["runs"])  # a study of its own, as long as many experiments
    columns = Path("exp/runs.csv").read_text().splitlines()[0].split(",")
    assert columns[:3] == ["gate", "seed", "run"]
    assert columns[-1] == "train_seconds"
    again = run_twins("small.yaml", gates=["none", "se"], seeds=2, out="exp")
    assert stand_in() == []
    assert capsys.readouterr().out.count("│ none") == 1
    assert again == report == run_twins(resume="exp", quiet=True)
    assert capsys.readouterr().out == ""


def test_a_scaled_learning_rate_is_scaled_once(stand_in, capsys):
    words: dict[str, Any] = {"gates": ["none"], "seeds": 1, "out": "exp"}
    run_twins("small.yaml", ["scale_lr_to=64"], **words)
    assert "learning rate 0.05 -> 0.1" in capsys.readouterr().out
    scaled = load_recipe("exp/none-seed0")
    assert (scaled.optimizer.lr, scaled.train.batch_size, scaled.train.scale_lr_to) == (0.1, 64, None)
    stand_in()
    run_twins("small.yaml", ["scale_lr_to=64"], **words)
    run_twins(resume="exp")
    assert stand_in() == []


def test_gates_and_seeds_may_be_added(stand_in):
    run_twins("small.yaml", gates=["none", "se"], seeds=1, out="exp", quiet=True)
    stand_in()
    report = run_twins(resume="exp", gates=["ge_theta"], seeds=2, quiet=True)
    assert stand_in() == ["check", "ge_theta-seed0", "none-seed1", "se-seed1", "ge_theta-seed1", "latency"]
    assert report["gates"] == ["none", "se", "ge_theta"]
    assert [row["finished"] for row in report["rows"]] == [2, 2, 2]
    plan = load_plan(Path("exp"))
    assert plan == Plan(small(), ("none", "se", "ge_theta"), (0, 1))


def test_folds_take_the_place_of_seeds(stand_in, monkeypatch, capsys):
    monkeypatch.setenv("se_fold2", "nan")
    report = run_twins("small.yaml", gates=["none", "se"], folds=3, out="exp")
    order = [f"{gate}-fold{k}" for k in (1, 2, 3) for gate in ("none", "se")]
    assert stand_in() == ["check", *order, "latency"]
    assert "run 3/6  none, fold 2: top-1" in capsys.readouterr().out
    assert report["failures"] == [{"gate": "se", "seed": 0, "fold": 2, "reason": "the loss is nan at step 3"}]
    assert report["missing"] == ["se-fold2"]
    assert [(r["gate"], r["fold"]) for r in report["runs"]][-1] == ("se", 3)
    assert report["rows"][1]["pairs"] == 2
    assert load_recipe("exp/none-fold2").data.fold == [2, 3]
    assert load_recipe("exp/none-fold2").train.seed == 0
    said = Path("exp/twins.md").read_text()
    assert "3 folds of the training images (data.fold): each image validates once." in said
    assert "the variance of the mean is not 1/3 of that of a fold, but 1/3 + 1/2." in said
    assert "FAILED: se, fold 2" in said
    monkeypatch.delenv("se_fold2")
    report = run_twins(resume="exp", quiet=True)
    assert stand_in() == ["se-fold2"]
    assert report["folds"] == 3
    assert report["rows"][1]["planned"] == report["rows"][1]["finished"] == 3
    assert load_plan(Path("exp")) == Plan(small(), ("none", "se"), (0,), 3)
    for words, why in (
        ({"seeds": 2}, "give --folds or --seeds, not both"),
        ({"folds": 4}, "exp contains twins of 3 folds; give another --out for 4 folds"),
    ):
        with pytest.raises(ExciteError, match=why):
            run_twins("small.yaml", gates=["none"], out="exp", quiet=True, **words)
    with pytest.raises(ExciteError, match=r"--folds 3 sets data.fold itself: leave data.fold out"):
        run_twins("small.yaml", ["data.fold=1/2"], gates=["none"], folds=3, out="other", quiet=True)
    with pytest.raises(ExciteError, match="validates on training images, not on the test part"):
        run_twins("small.yaml", ["data.val_from=test"], gates=["none"], folds=3, out="other", quiet=True)


# --- until decided ----------------------------------------------------------------------------------------------------


def test_the_sequence_is_where_the_likelihood_ratio_reaches_its_bound():
    """By the definition: the ends of an interval are the means whose ratio is 1 / alpha."""
    values, alpha = [0.31, 0.12, 0.25, 0.22, 0.28, 0.11], 0.05
    mean, low, high = mean_sequence(values, 1 - alpha)
    assert mean == pytest.approx(statistics.fmean(values))

    def ratio(n, tested):
        shifted = [value - tested for value in values[:n]]
        squares, total = sum(x * x for x in shifted), sum(shifted)
        return math.sqrt(1 / (n + 1)) * (squares / (squares - total**2 / (n + 1))) ** (n / 2)

    ends = []
    for n in range(2, 7):
        within = [t / 1000 for t in range(-5000, 5000) if ratio(n, t / 1000) < 1 / alpha]
        ends.append((within[0], within[-1]))
    assert low == pytest.approx(max(first for first, _ in ends), abs=1e-3)
    assert high == pytest.approx(min(last for _, last in ends), abs=1e-3)
    assert ratio(1, 0.0) == pytest.approx(1)
    assert mean_sequence(values[:4], 0.95)[1:] == (None, None), "infinite"
    assert mean_sequence([], 0.95) == (None, None, None)


def decided(values, confidence, margin):
    """The verdict at the first seed that has one, and that seed; the intersection is made once, step by step."""
    low, high = -math.inf, math.inf
    for n in range(2, len(values) + 1):
        half, mean = _half_width(values[:n], 1 - confidence), statistics.fmean(values[:n])
        low, high = max(low, mean - half), min(high, mean + half)
        if not math.isinf(high) and (found := verdict(low, high, margin)) != "undecided":
            return found, n
    return "undecided", len(values)


@pytest.mark.parametrize("kind", ["gaussian", "counts"])
def test_stopping_when_it_suits_gives_false_verdicts_in_at_most_5_percent(kind):
    """1,000 experiments in which the gate does nothing, looked at after each of up to 30 seeds."""
    rng = random.Random(0)
    false = 0
    for _ in range(1000):
        if kind == "gaussian":
            values = [rng.gauss(0, 0.2) for _ in range(30)]
        else:  # differences of accuracies on 1,000 images, in steps of 0.1 points
            values = [round(rng.gauss(0, 5) - rng.gauss(0, 5)) / 10 for _ in range(30)]
        false += decided(values, 0.95, 0.05)[0] in ("better", "worse")
    assert false <= 50
    assert false > 0, "else the test could not fail"


def test_students_interval_would_not_survive_that():
    rng, t = random.Random(0), {n: student_t(0.95, n - 1) for n in range(3, 31)}

    def ever_significant(values):
        return any(
            abs(statistics.fmean(values[:n])) > t[n] * statistics.stdev(values[:n]) / n**0.5 for n in range(3, 31)
        )

    assert sum(ever_significant([rng.gauss(0, 0.2) for _ in range(30)]) for _ in range(200)) > 40


def test_verdicts_come_and_are_right():
    rng = random.Random(1)
    for effect, wanted in ((0.3, "better"), (-0.3, "worse"), (0.0, "equivalent")):
        found = [decided([rng.gauss(effect, 0.15) for _ in range(60)], 0.95, 0.15) for _ in range(200)]
        assert sum(what == wanted for what, _ in found) >= 185, effect
        assert statistics.median(n for _, n in found) < 40
    assert verdict(None, None, 0.1) == verdict(-0.2, 0.05, 0.1) == "undecided"
    assert verdict(0.01, 0.05, 0.1) == "better"
    assert verdict(-0.05, 0.09, 0.1) == "equivalent"


def test_the_planned_number_of_seeds_has_the_power():
    needed = seeds_needed(0.13, 0.1, 0.95)
    assert needed == 16
    assert seeds_needed(0.13, 0.3, 0.95) == 4
    rng, t = random.Random(0), student_t(0.95, needed - 1)
    seen = 0
    for _ in range(2000):
        values = [rng.gauss(0.1, 0.13) for _ in range(needed)]
        seen += statistics.fmean(values) > t * statistics.stdev(values) / needed**0.5
    assert 0.77 < seen / 2000 < 0.85


@pytest.mark.heavy
def test_gates_get_seeds_until_decided(stand_in, capsys):
    """The stand-in's gates are 2, 3, 4 ... points better than none."""
    report = run_twins("small.yaml", gates=["none", "se", "ge_theta"], out="exp", until="decided", margin=0.5)
    asked = stand_in()
    runs = [line for line in asked if "seed" in line]
    last = max(int(line.rpartition("seed")[2]) for line in runs)
    assert 4 <= last < 12
    assert runs == [f"{gate}-seed{s}" for s in range(last + 1) for gate in ("none", "se", "ge_theta")]
    assert [row["verdict"] for row in report["rows"]] == [None, "better", "better"]
    assert report["missing"] == []
    values = [2.0 + seed for seed in range(last + 1)]
    expected = mean_sequence(values, 1 - 0.05 / 2)  # of two gates, both at once
    row = report["rows"][1]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == pytest.approx(expected)
    assert mean_sequence(values[:-1], 1 - 0.05 / 2)[1] is None or mean_sequence(values[:-1], 0.975)[1] <= 0
    printed = capsys.readouterr().out
    assert "verdict" in printed
    text = Path("exp/twins.md").read_text()
    assert "for all 2 gates together (each is that of 97.5 %), however often one looks" in text
    assert "To see a true difference with 80 %, a paired t-test takes" in text
    again = run_twins(resume="exp", quiet=True)
    assert stand_in() == []
    assert again["rows"] == report["rows"]
    assert load_plan(Path("exp")).margin == 0.5
    run_twins(resume="exp", gates=["cbam"], quiet=True)
    added = [line for line in stand_in() if "seed" in line]
    assert all(line.startswith("cbam") or int(line.rpartition("seed")[2]) > last for line in added)


@pytest.mark.heavy
def test_an_undecided_experiment_ends_with_its_seeds(stand_in):
    report = run_twins("small.yaml", gates=["none", "se"], seeds=3, out="exp", until="decided", quiet=True)
    assert [row["verdict"] for row in report["rows"]] == [None, "undecided"]
    assert [row["finished"] for row in report["rows"]] == [3, 3]
    assert load_plan(Path("exp")).margin == 0.1
    more = run_twins("small.yaml", gates=["none", "se"], out="fixed", seeds=2, quiet=True)
    assert "verdict" not in more["rows"][0]
    later = run_twins("small.yaml", gates=["none", "se"], out="fixed", until="decided", quiet=True)
    assert later["rows"][1]["verdict"] == "better", "an experiment may go on until decided"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"until": "done"}, "--until is 'done', but it takes one word: decided"),
        ({"margin": 0.1}, "--margin 0.1 is for --until decided: give both"),
        ({"until": "decided", "margin": 0.0}, "--margin must be a number of points above 0, such as 0.1, not 0"),
        ({"until": "decided", "folds": 3}, "--until decided goes on with further seeds, which folds do not have"),
    ],
)
def test_what_until_decided_refuses(stand_in, words, message):
    with pytest.raises(ExciteError, match=message):
        run_twins("small.yaml", gates=["none", "se"], out="exp", **words)


def test_a_failed_run_is_reported_the_others_go_on_and_it_is_tried_again(stand_in, monkeypatch, capsys):
    monkeypatch.setenv("se_seed0", "nan")
    report = run_twins("small.yaml", gates=["none", "se"], seeds=2, out="exp")
    assert stand_in() == ["check", "none-seed0", "se-seed0", "none-seed1", "se-seed1", "latency"]
    assert report["failures"] == [{"gate": "se", "seed": 0, "reason": "the loss is nan at step 3"}]
    assert report["missing"] == ["se-seed0"]
    assert report["rows"][1]["pairs"] == 1
    assert "run 2/4  se, seed 0: FAILED: the loss is nan at step 3" in capsys.readouterr().out
    assert "FAILED: se, seed 0: the loss is nan at step 3" in Path("exp/twins.md").read_text()
    monkeypatch.delenv("se_seed0")
    report = run_twins("small.yaml", gates=["none", "se"], seeds=2, out="exp", quiet=True)
    assert stand_in() == ["se-seed0"]
    assert report["failures"] == report["missing"] == []


def test_the_command_fails_where_a_run_failed(stand_in, monkeypatch, capsys):
    from excite.cli import main

    monkeypatch.setenv("se_seed0", "nan")
    monkeypatch.setattr(sys, "argv", ["excite", "twins", "small.yaml", "--gates=none, se", "--seeds=1", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 1
    assert "error: 1 run failed; repeat the command to try them again: se, seed 0: the loss is nan" in printed.err
    assert json.loads(printed.out)["folder"] == "runs/twins-small"
    assert [row["gate"] for row in json.loads(printed.out)["rows"]] == ["none", "se"]


def test_a_mistake_in_the_recipe_or_the_data_stops_before_anything_trains(stand_in, monkeypatch):
    monkeypatch.setenv("CHECK", "data.root=/no/where does not exist")
    with pytest.raises(ExciteError, match=r"^data\.root=/no/where does not exist$"):
        run_twins("small.yaml", out="exp", quiet=True)
    assert stand_in() == ["check"]
    assert not Path("exp").exists()
    monkeypatch.delenv("CHECK")
    monkeypatch.setenv("none_seed0", "early")  # found by the first training only
    with pytest.raises(ExciteError, match=r"^data\.root does not exist$"):
        run_twins("small.yaml", out="exp", quiet=True)
    assert stand_in() == ["check", "none-seed0"]
    monkeypatch.delenv("none_seed0")
    run_twins("small.yaml", ["epochs=2"], gates=["none"], seeds=1, out="exp", quiet=True)  # mended: nothing was trained
    assert load_plan(Path("exp")) == Plan(small("epochs=2"), ("none",), (0,))


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_is_resumed(stand_in, monkeypatch, capsys):
    monkeypatch.setenv("se_seed0", "stop")
    with pytest.raises(Interrupted) as stopped:
        run_twins("small.yaml", gates=["none", "se"], seeds=1, out="exp", quiet=True)
    assert str(stopped.value) == ("stopped by Ctrl-C with 1 of 2 runs finished; resume with: excite twins --resume exp")
    assert stopped.value.exit_status == 130
    assert Path("exp/se-seed0/checkpoints").is_dir()
    assert json.loads(Path("exp/results.json").read_text())["missing"] == ["se-seed0"]
    stand_in()
    monkeypatch.delenv("se_seed0")
    report = run_twins(resume="exp")
    assert report["missing"] == []
    assert stand_in() == ["se-seed0", "latency"]
    assert "run 2/2  se, seed 0: resuming ..." in capsys.readouterr().out


def test_what_an_experiment_refuses(stand_in, monkeypatch):
    run_twins("small.yaml", gates=["none", "se"], seeds=1, out="exp", quiet=True)
    kept = Path("exp/results.json").read_text()
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"overrides": ["epochs=9", "lr=0.5"]},
            r"another recipe \(optimizer.lr is 0.05 there and 0.5 here; train.ep",
        ),
        ({"gates": ["none", "none"]}, "must name each gate once"),
        ({"gates": ["senone"]}, "unknown gate 'senone'"),
        ({"confidence": 95}, "--confidence must be between 0.5 and 0.999"),
        ({"out": "small.yaml"}, "small.yaml is a file"),
        ({"out": "."}, r"contains other files and no twins.json"),
        ({"out": "s3://bucket/exp"}, "must be on this machine"),
        ({"resume": "exp"}, "--resume continues an experiment with its own recipe"),
    ]
    stand_in()
    for arguments, message in wrong:
        with pytest.raises(ExciteError, match=message):
            run_twins("small.yaml", **{"out": "exp", "quiet": True, **arguments})
    with pytest.raises(ExciteError, match="nowhere is not an experiment of `excite twins`"):
        run_twins(resume="nowhere")
    with pytest.raises(ExciteError, match="give a recipe"):
        run_twins()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ExciteError, match="not under torchrun"):
        run_twins("small.yaml")
    assert stand_in() == []
    assert Path("exp/results.json").read_text() == kept
    assert not Path("nowhere").exists()


def test_the_same_network_under_two_labels_is_refused(stand_in):
    Path("r8.yaml").write_text(small("model.options={reduction: 8}").to_yaml())
    with pytest.raises(ExciteError, match="the gates 'se' and 'se:reduction=8' are the same for this recipe"):
        run_twins("r8.yaml", gates=["none", "se", "se:reduction=8"], quiet=True)


def test_damaged_or_foreign_folders_are_refused(stand_in):
    run_twins("small.yaml", gates=["none", "se"], seeds=1, out="exp", quiet=True)
    Path("exp/se-seed0/recipe.yaml").write_text(small("epochs=7").to_yaml())
    with pytest.raises(ExciteError, match=r"exp/se-seed0 was trained with another recipe than that in exp/twins.json"):
        run_twins(resume="exp", quiet=True)
    Path("exp/twins.json").write_text('{"format_version": 1')
    with pytest.raises(ExciteError, match=r"exp/twins.json cannot be read as JSON"):
        run_twins(resume="exp", quiet=True)
    Path("exp/twins.json").write_text('{"format_version": 2, "gates": [], "seeds": [], "recipe": {}}')
    with pytest.raises(ExciteError, match="has format 2"):
        run_twins(resume="exp", quiet=True)


def test_two_experiments_in_one_folder_wait_for_each_other(stand_in, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")
    run_twins("small.yaml", gates=["none", "se"], seeds=1, out="exp", quiet=True)
    monkeypatch.setattr(runner, "LOCK_SECONDS", 0.3)
    with Path("exp/.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ExciteError, match="another `excite twins`, or a training that it started, is running"):
            run_twins(resume="exp", quiet=True)
    run_twins(resume="exp", quiet=True)
    assert stand_in()[-1] == "latency"


# --- the report -----------------------------------------------------------------------------------------------------


@pytest.fixture
def report(tmp_path) -> dict[str, Any]:
    """Three gates and three seeds, of which one run is missing."""
    plan = Plan(small(), ("none", "se", "ge_theta_plus:extent=4"), (0, 1, 2))
    top1 = {"none": [90.0, 88.0, 92.0], "se": [91.0, 90.0, 92.0], "ge_theta_plus:extent=4": [90.0, None, 95.0]}
    for i, gate in enumerate(plan.gates):
        for seed, value in enumerate(top1[gate]):
            if value is None:
                continue
            results = {"model": gate, "last_top1": value, "top1": value + 1 + (i == 0), "images": 100, "epochs": 3}
            results |= {"params_m": 0.25 + i, "gmacs": 0.04, "images_per_second": 1000.0 * (seed + 1), "devices": 1}
            results |= {"memory_gb": 0.5 + seed, "train_seconds": 2.0, "device": "stand-in", "precision": "fp32"}
            folder = tmp_path / run_name(gate, seed)
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps(results))
    # A run that was interrupted: its first process needed more memory than its last.
    record = json.dumps({"kind": "train", "step": 1, "epoch": 1.0, "loss": 1.0, "lr": 0.1, "memory_gb": 4.5})
    (tmp_path / "se-seed0" / "metrics.jsonl").write_text(f'{record}\n{{"kind": "eval"}}\n')
    ms = {gate: [1.0, 1.5 + i, 2.25 + i] for i, gate in enumerate(plan.gates)}
    latency = {"rounds": 7, "passes": 5, "ms": ms, "device": "stand-in", "precision": "fp32"}
    (tmp_path / "latency.json").write_text(json.dumps(latency))
    return collect(plan, tmp_path, [], 0.95)


def test_the_numbers_of_a_report(report):
    none, se, ge = report["rows"]
    assert (none["top1_mean"], none["top1_sd"], none["best_top1_mean"]) == (90.0, 2.0, 92.0)
    assert (none["difference"], none["pairs"]) == (None, 0)
    # Differences 1, 2, 0: sd 1, and t for 2 degrees of freedom is 0.95 * sqrt(2 / (1 - 0.95^2)) = 4.3027.
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert (se["difference"], se["pairs"]) == (1.0, 3)
    assert (se["difference_low"], se["difference_high"]) == pytest.approx((1 - half, 1 + half))
    # Its seed 1 is missing, and so is left out of the ungated mean: 0 and 3, not 92.5 - 90.
    assert (ge["difference"], ge["pairs"], ge["finished"], ge["planned"]) == (1.5, 2, 2, 3)
    assert (se["images_per_second"], se["images_per_second_low"], se["images_per_second_high"]) == (2000, 1000, 3000)
    assert (ge["latency_low"], ge["latency_ms"], ge["latency_high"]) == (1.0, 3.5, 4.25)
    assert (se["memory_gb"], se["params_m"], se["train_seconds"]) == (4.5, 1.25, 2.0)
    assert report["missing"] == ["ge_theta_plus-extent=4-seed1"]
    assert report["baseline"] == "none"


def test_balanced_accuracy_and_what_chose_are_in_the_table_where_they_matter(report):
    """Runs of older versions have neither; see also the tests of rare classes."""
    assert "balanced %" not in table(report)[0]
    for run in report["runs"]:
        run |= {"uneven": True, "last_balanced": run["last_top1"] - 10, "metric": "macro_f1", "stopped_early": True}
    row = _row([run for run in report["runs"] if run["gate"] == "none"], (0, 1, 2))
    assert (row["balanced_mean"], row["balanced_sd"]) == (80.0, 2.0)
    report["rows"][0] |= row
    assert table(report)[0]["balanced %"] == "80.00 ± 2.00"
    told = notes(report)
    assert "The best epoch is that of the highest macro F1 (eval.metric)." in told
    assert any(note.startswith("8 of 8 runs ended early (train.patience)") for note in told)


def test_the_table_in_all_its_forms(report, tmp_path):
    rows = table(report)
    assert list(rows[1].values()) == [
        "se",
        "3/3",
        "91.00 ± 1.00",
        "+1.00 [-1.48, +3.48]",
        "92.00 ± 1.00",
        "1.250",
        "0.0400",
        "2,000 (1,000 to 3,000)",
        "2.50 (1.00 to 3.25)",
        "4.50",
    ]
    assert "difference to none [95 % interval]" in rows[0]
    write_report(report, tmp_path)
    lines = (tmp_path / "twins.md").read_text().splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert lines[3].startswith("| se | 3/3 | 91.00 ± 1.00 | +1.00 [-1.48, +3.48] |")
    with (tmp_path / "twins.csv").open() as file:
        (none, se, ge) = csv.DictReader(file)
    assert (none["difference"], float(se["difference"]), ge["gate"]) == ("", 1.0, "ge_theta_plus:extent=4")
    with (tmp_path / "runs.csv").open() as file:
        assert [(r["gate"], r["seed"]) for r in csv.DictReader(file)][:4] == [
            ("none", "0"),
            ("se", "0"),
            ("ge_theta_plus:extent=4", "0"),
            ("none", "1"),
        ]
    said = " ".join(notes(report))
    assert "3 seeds (0, 1, 2): mean ± sample standard deviation; differences are paired by seed" in said
    assert "7 rounds of 5" in said
    assert "different devices" not in said


def test_one_seed_has_no_interval_and_the_report_says_so(report, tmp_path):
    alone = collect(Plan(small(), ("none", "se"), (0,)), tmp_path, [], 0.95)
    assert [row["top1_sd"] for row in alone["rows"]] == [None, None]
    assert (alone["rows"][1]["difference"], alone["rows"][1]["difference_low"]) == (1.0, None)
    assert table(alone)[1]["difference to none [95 % interval]"] == "+1.00 [no interval]"
    assert "One seed: no spread and no interval" in " ".join(notes(alone))
    draw(alone, tmp_path / "one.svg")


def test_without_an_ungated_twin_the_first_gate_is_compared_with(report, tmp_path):
    found = collect(Plan(small(), ("se", "ge_theta_plus:extent=4"), (0, 2)), tmp_path, [], 0.9)
    assert (found["baseline"], found["rows"][0]["difference"], found["rows"][1]["difference"]) == ("se", None, 1.0)
    assert "difference to se [90 % interval]" in table(found)[0]


def test_runs_on_different_devices_are_pointed_out(report, tmp_path):
    path = tmp_path / "se-seed0" / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "device": "another", "key_of_a_later_version": 1}))
    found = collect(Plan(small(), ("none", "se"), (0, 1)), tmp_path, [], 0.95)
    assert "The runs were made on different devices" in " ".join(notes(found))
    write_report(found, tmp_path)
    with (tmp_path / "runs.csv").open() as file:
        assert [row["key_of_a_later_version"] for row in csv.DictReader(file)] == ["", "1", "", ""]


def test_the_picture_holds_every_gate_and_number(report, tmp_path):
    for name in ("a.svg", "b.svg", "a.png"):
        draw(report, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()  # to be committed
    texts = {
        "".join(t.itertext()) for t in ElementTree.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}text")
    }
    assert {*report["gates"], "difference to none", "training speed", "latency of one image", "2,000", "3.50"} <= texts
    assert "small: 3 seeds, 3 epochs" in texts
    decided = copy.deepcopy(report) | {"margin": 0.1}
    for number, row in enumerate(decided["rows"]):
        row["finished"] = 12 if number else 14
    draw(decided, tmp_path / "c.svg")
    assert "small: 12 to 14 seeds, 3 epochs" in (tmp_path / "c.svg").read_text()
    assert not [note for note in notes(report) if "not measured" in note]


def test_a_latency_that_was_not_measured_is_no_panel_but_a_line_with_the_command(report, tmp_path):
    (tmp_path / "latency.json").unlink()
    found = collect(Plan(small(), ("none", "se"), (0, 1)), tmp_path, [], 0.95)
    draw(found, tmp_path / "a.svg")
    assert "latency" not in (tmp_path / "a.svg").read_text()
    assert f"To measure it: excite twins --resume {tmp_path}" in "\n".join(notes(found))


def test_the_labels_of_the_picture_do_not_overlap(report, tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    rows = report["rows"]
    many = [{**rows[i % 3], "gate": f"ge_theta_plus:reduction={i}:extent=4"} for i in range(9)]
    many[0]["gate"] = "none"
    for gates in (rows, rows[:2], many):
        draw({**report, "rows": gates, "gates": [row["gate"] for row in gates]}, tmp_path / "many.png")
    assert len(figures) == 3
    for figure in figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        hidden = set()  # ticks that are made but lie outside of the axis
        for axis in [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]:
            low, high = sorted(axis.get_view_interval())
            hidden |= {t.label1 for t in axis.get_major_ticks() if not low <= t.get_loc() <= high}
        texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t not in hidden]
        shown = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
        assert len(shown) > 20
        for i, (text, box) in enumerate(shown):
            assert figure.bbox.padded(1).contains(box.x0, box.y0), text
            assert figure.bbox.padded(1).contains(box.x1, box.y1), text
            for other, place in shown[:i]:
                assert not box.overlaps(place), (text, other)


# --- the real thing -------------------------------------------------------------------------------------------------

FAST = ("checkpoint.every_steps=1", "limit_train=96", "limit_val=50")


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    """Start the real command."""
    command = [sys.executable, "-m", "excite", "twins", *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Bit-equality with the run inside this process needs equal sums, so one thread as there.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_checkpoint(process: subprocess.Popen[str], place: Path, step: int) -> None:
    """Until a training has saved ``step`` or a later one."""
    until = time.monotonic() + 240
    while not any(saved >= step for saved in saved_steps(place)):  # looks into no folder that may be gone by then
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "small.yaml").write_text(small("epochs=6", *FAST).to_yaml())
    words = ["small.yaml", "--gates", "none,se", "--seeds", "1", "--out", "exp"]
    process = start(tmp_path, *words)
    wait_for_checkpoint(process, tmp_path / "exp/se-seed0", 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = tmp_path / "exp/none-seed0"
    kept = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert (first / "results.json").is_file()
    assert not (tmp_path / "exp/se-seed0/results.json").exists()

    process = start(tmp_path, *words)  # at once: it waits for the training that was left behind to save and end
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == kept
    assert "run 2/2  se, seed 0: resuming ..." in output
    assert "none, seed 0: training" not in output
    assert "difference to none [95 % interval]" in output
    assert "[no interval]" in output
    assert "use --seeds 3 or more" in output
    log = (tmp_path / "exp/se-seed0/log.txt").read_text()
    assert re.search(r"going on after step \d", log)

    assert not (tmp_path / "exp/.recipe.yaml").exists()
    report = json.loads((tmp_path / "exp/results.json").read_text())
    plan = load_plan(tmp_path / "exp")
    undisturbed = train(plan.twin("se", 0), out=tmp_path / "undisturbed", quiet=True)
    assert same(tensors(undisturbed["run"]), tensors(tmp_path / "exp/se-seed0"))
    none, se = report["rows"]
    assert (se["model"], none["model"]) == ("cifar_seresnet20", "cifar_resnet20")
    assert se["top1_mean"] == undisturbed["last_top1"]
    assert se["difference"] == se["top1_mean"] - none["top1_mean"]
    assert none["params_m"] < se["params_m"]
    assert none["gmacs"] < se["gmacs"]
    for row in report["rows"]:
        assert 0 < row["latency_low"] <= row["latency_ms"] <= row["latency_high"]
        assert row["images_per_second"] > 0
        assert row["memory_gb"] > 0.2  # torch alone
    assert {r["run"] for r in report["runs"]} == {"exp/none-seed0", "exp/se-seed0"}
    assert (tmp_path / "exp/twins.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "exp/twins.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
def test_ctrl_c_in_the_real_thing(tmp_path):
    """Once: the training saves and ends; twice at once: everything ends at once."""
    (tmp_path / "small.yaml").write_text(small("epochs=60", *FAST).to_yaml())
    process = start(tmp_path, "small.yaml", "--gates", "none,se", "--seeds", "2", "--out", "exp")
    wait_for_checkpoint(process, tmp_path / "exp/none-seed0", 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    said = re.search(r"stopped by Ctrl-C with 0 of 4 runs finished; resume with: excite twins (--resume exp)\n", output)
    assert said, output
    process = start(tmp_path, *said.group(1).split())
    wait_for_checkpoint(process, tmp_path / "exp/none-seed0", 20)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0


@pytest.mark.slow
def test_diverging_runs_do_not_stop_the_others(excite):
    """At this learning rate no loss stays finite: every gate fails, and each failure is said."""
    (excite.cwd / "small.yaml").write_text(small("epochs=1", "optimizer.lr=1e30", "warmup_epochs=0", *FAST).to_yaml())
    done = excite("twins", "small.yaml", "--gates", "none,se", "--seeds", "1", "--json", check=False)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [f["gate"] for f in report["failures"]] == ["none", "se"]
    assert all("not all values in" in f["reason"] or "the loss is" in f["reason"] for f in report["failures"])
    begun, told = done.stderr.splitlines()
    assert begun.endswith(" ...")
    assert told.startswith("error: 2 runs failed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits-seresnet20", "--gates", "none,see"], "did you mean 'se'"),
        (
            ["digits-seresnet20", "--out", "s3://bucket/twins"],
            "s3://bucket/twins: the folder of an experiment must be on",
        ),
        pytest.param(["epochs=3"], "the first word must be a recipe", marks=pytest.mark.slow),
        pytest.param(["--resume", "nowhere"], "is not an experiment of `excite twins`", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(excite, words, message):
    done = excite("twins", *words, check=False)
    assert done.returncode == 1
    assert "run 1/" not in done.stdout
    *begun, told = done.stderr.splitlines()
    assert all(line.endswith(" ...") for line in begun), done.stderr
    assert told.startswith("error: ")
    assert message in told
    assert not list(excite.cwd.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar10-seresnet20", "data.root=/no/where"], "data.root=/no/where does not exist"),
        (
            ["digits-seresnet20", "train.freeze=[layer1.0.gate*]"],
            "the gate 'none' does not fit this recipe: train.freeze",
        ),
        (["digits-seresnet20", "init_from=nowhere"], "no run folder or checkpoint 'nowhere'"),
    ],
)
def test_what_only_building_the_networks_finds_is_found_before_anything_trains(excite, words, message):
    test_a_mistake_is_one_sentence_and_a_status(excite, words, message)


def test_examples_in_the_help_parse():
    import typer

    from excite.cli import app

    command = typer.main.get_command(app).commands["twins"]
    examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("excite ")]
    assert len(examples) == 5
    for line in examples:
        words = shlex.split(line)[1:]
        assert words[0] == "twins"
        command.make_context("twins", words[1:])


def test_the_tables_in_the_documentation_are_generated(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "img"))
    import update

    drawn = {path.stem.removeprefix("twins-") for path in (ROOT / "docs" / "img").glob("twins-*.json")}
    found = set()
    for page in ("twins.md", "evidence.md"):
        text = (ROOT / "docs" / page).read_text()
        for name in drawn & set(re.findall(r"<!-- /([\w-]+) -->", text)):
            found.add(name)
            assert update.section(name) in text
            assert ElementTree.parse(ROOT / "docs" / "img" / f"twins-{name}.svg")
            report = json.loads((ROOT / "docs" / "img" / f"twins-{name}.json").read_text())
            assert report["missing"] == [] or "margin" in report, "one that goes until decided may be going on"
            means = {row["gate"]: row["top1_mean"] for row in report["rows"]}
            for gate, mean in means.items():  # of the committed runs, by hand
                runs = [r["last_top1"] for r in report["runs"] if r["gate"] == gate]
                assert mean == pytest.approx(statistics.mean(runs))
    assert found == drawn >= {"digits", "cifar10"}, "each is on a page"
    assert update.readme() in (ROOT / "README.md").read_text()
    assert update.fast() in (ROOT / "docs" / "evidence.md").read_text()


def test_the_verdicts_in_words_are_those_of_the_rows():
    """What is decided with its interval and its seeds, and how much what is undecided can gain."""
    text = (ROOT / "docs" / "evidence.md").read_text().partition("## Verdicts")[2].partition("###")[0]
    said = " ".join(text.split())
    report = json.loads((ROOT / "docs" / "img" / "twins-fast-quarter.json").read_text())
    base, *gates = report["rows"]
    for row in gates:
        difference, low, high = (f"{row[key]:+.2f}" for key in ("difference", "difference_low", "difference_high"))
        if row["verdict"] == "undecided":
            assert re.search(rf"{high[1:]}\b", said), row["gate"]
            assert f"after {row['finished']} seeds" in said
        else:
            assert difference in said, row["gate"]
            assert f"{low} to {high}" in said
            assert f"decided after {row['finished']} seeds" in said
    wide = [row["beside"]["robust_top1"] for row in gates]
    assert all(found["difference_low"] < 0 < found["difference_high"] for found in wide), "no gate shows a difference"
    costs = [row["latency_ms"] - base["latency_ms"] for row in gates]
    assert f"between {min(costs):.1f} and {max(costs):.1f} ms of the {base['latency_ms']:.2f} ms" in said
    calibration = {row["gate"].partition(":")[0]: row["beside"]["ece"]["difference"] for row in gates}
    assert f"GE-θ+ is off by {calibration['ge_theta_plus']:.1f} points more" in said
    assert f"CBAM by {-calibration['cbam']:.2f} less, ECA by {calibration['eca']:.1f} more" in said


def test_an_experiment_that_was_killed_while_it_wrote_its_first_file_begins_again(tmp_path):
    """A dead process's temporary file is not another file in the folder."""
    from excite.owners import names_in

    gone = tmp_path / ".twins.json.tmp-4194305-00000000-1-0"
    gone.write_text("x")
    os.utime(gone, (1, 1))
    (tmp_path / ".twins.json.tmp-notours").write_text("x")
    assert names_in(tmp_path) == [".twins.json.tmp-notours"]
    assert not gone.exists()
    assert names_in(tmp_path / "none") == []
