"""The commands as functions: ``import excite``, then ``excite.report(...)`` and the like."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import excite as package
from excite.cli import app
from excite.command_help import leaves
from excite.errors import ExciteError
from excite.recipe import load_recipe, override_words
from tests.training.small import SMALL, small

FUNCTIONS = ["train", "validate", "predict", "report", "compare", "explain"]
FUNCTIONS += ["export", "convert", "graft", "prune", "twins", "bench", "check_data"]
#: Of a command of two words.
COMMANDS = {"check_data": "data check"}
PACKAGES = ["bench", "compare", "explain", "export", "report", "twins"]
#: Parameters of a command that are spelt otherwise in Python: "input" is a function of Python's, and words are words.
RENAMED = {
    "source": None,  # what it is about comes first, under various names
    "as_json": None,  # results are values
    "overrides": None,
    "args": None,
    "words": None,
    "strict": None,  # the exit status: DataCheck.fails
    "per_class": None,  # how much of the result is shown
    "option": None,  # NAME=VALUE: keywords
    "input_kind": "input",
}
NOTHING = (None, (), [])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_options_of_its_command_with_their_defaults(name):
    command = inspect.signature(leaves(typer.main.get_command(app))[COMMANDS.get(name, name)].callback).parameters
    function = inspect.signature(getattr(package, name)).parameters
    for option, there in command.items():
        wanted = RENAMED.get(option, option)
        if wanted is None:
            continue
        assert wanted in function, f"excite.{name} lacks {wanted}"
        here = function[wanted].default
        if there.default is inspect.Parameter.empty:
            assert here is inspect.Parameter.empty
        elif option == "at":
            assert (there.default, here) == (None, "auto")
        else:
            assert here == there.default or (here in NOTHING and there.default in NOTHING), wanted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_of_a_function_is_explained(name):
    found = getattr(package, name)
    called = {"compare": "compare_and_write", "explain": "explain_and_write", "twins": "run_twins"}
    function = getattr(found, called.get(name, name)) if name in PACKAGES else found
    told = re.search(r"Args:\n(.*?)(\n\n|\Z)", function.__doc__, re.DOTALL).group(1)
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ {{8}}(\w+, )*{parameter}(, \w+)*: ", told, re.MULTILINE), f"excite.{name}: {parameter}"


ORDERS = {
    "called first": "import excite; call = excite.{name}; import excite.{name}",
    "imported first": "import excite.{name}; call = excite.{name}",
    "from it first": "from excite.{name} import {inner}; import excite; call = excite.{name}",
    "by name": "from excite import {name} as call",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "inner", "home"),
    [
        ("bench", "bench", "build"),
        ("compare", "compare_and_write", "written"),
        ("explain", "explain_and_write", "written"),
        ("export", "export", "build"),
        ("report", "report", "build"),
        ("twins", "run_twins", "runner"),
    ],
)
def test_a_package_that_is_a_function_can_be_called_whatever_was_imported_before(order, name, inner, home):
    """In a process of its own; the module that has the function is a stand-in, because the real one imports torch."""
    code = f"""
import sys, types
stand_in = sys.modules["excite.{name}.{home}"] = types.ModuleType("excite.{name}.{home}")
stand_in.{inner} = lambda *words, **options: (words, options)
{ORDERS[order].format(name=name, inner=inner)}
assert call("run", out=1) == (("run",), {{"out": 1}})
from excite.{name} import {inner}, {home}
import excite, excite.{name}.{home}
assert excite.{name} is call and {inner} is stand_in.{inner} and {home} is stand_in
assert excite.{name}("again") == {inner}("again")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_functions_imports_nothing_heavy():
    code = (
        "import sys, excite\n"
        "[getattr(excite, name) for name in ('bench', 'compare', 'explain', 'export', 'report', 'twins')]\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_package_that_is_a_function_has_its_signature():
    assert list(inspect.signature(package.report).parameters)[:2] == ["source", "overrides"]
    assert "images" in inspect.signature(package.explain).parameters


# --- changes to recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        "train.epochs=7",
        ["epochs=7"],
        ("epochs=7",),
        {"epochs": 7},
        {"train.epochs": 7},
        {"train": {"epochs": 7}},
    ],
)
def test_changes_are_one_string_several_or_values(changes):
    assert load_recipe("digits-seresnet20", changes).train.epochs == 7
    assert load_recipe("digits-seresnet20").changed(changes).train.epochs == 7


@pytest.mark.parametrize(
    "value",
    [
        "photos",
        "10",
        "true",
        "null",
        "",
        "a: b",
        "#3",
        "[x",
        "C:\\photos",
        "a\nb",
        "é二",
        " x ",
        3,
        0.5,
        1e-7,
        True,
        None,
    ],
)
def test_a_value_of_pythons_arrives_as_it_is(value):
    from excite.recipe import apply_overrides

    assert apply_overrides({}, {"data.root": value}) == {"data": {"root": value}}


def test_values_of_other_kinds():
    import numpy as np

    given = {"data": {"root": Path("a/b"), "class_names": ("x", "1")}, "optimizer.lr": np.float64(0.5)}
    assert override_words(given) == ["data.root=a/b", "data.class_names=[x, '1']", "optimizer.lr=0.5"]
    table = {"model": {"options": {"gate": {"name": "se", "reduction": 8}}}}
    assert override_words(table) == ["model.options={gate: {name: se, reduction: 8}}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("epochs", "'epochs' is not of the form key=value"),
        ([3], "3 is not a recipe override; write key=value"),
        ({"epochs": object()}, "epochs cannot be <object"),
        ({"epochz": 3}, "unknown key 'epochz' in an override; did you mean"),
        ({"train": {"epochz": 3}}, "unknown key 'train.epochz' in an override; did you mean"),
    ],
)
def test_wrong_changes_are_told(changes, message):
    with pytest.raises(ExciteError, match=re.escape(message)):
        load_recipe("digits-seresnet20", changes)


@pytest.mark.parametrize("name", ["validate", "report", "explain"])
def test_a_single_change_is_no_list_of_letters(name, tiny, tmp_path):
    with pytest.raises(ExciteError, match=r"unknown key 'data\.rooot'"):
        getattr(package, name)(tiny.gated, overrides="data.rooot=x", device="cpu")


def test_a_single_run_is_no_list_of_letters(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExciteError, match="a comparison needs at least two runs, and only '/"):
        package.compare(str(tiny.gated))
    with pytest.raises(ExciteError, match="a comparison needs at least two runs, and only '/"):
        package.compare.compare(str(tiny.gated))


# --- what they do ---------------------------------------------------------------------------------------------------


def test_train_writes_the_report_as_the_command_does(tmp_path, capsys):
    options = {"robustness_images": 20, "gate_images": 0}
    results = package.train(small("mixup=0.0"), epochs=1, report={**options, "write": True}, out=tmp_path / "runs")
    run = Path(results["run"])
    assert "report" in json.loads((run / "results.json").read_text())
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert f"report {run / 'report.html'}" in capsys.readouterr().out
    assert load_recipe(str(run)) == small("mixup=0.0", "epochs=1").changed({"report": {**options, "write": True}})


def test_train_writes_no_report_where_the_recipe_says_so(tmp_path):
    results = package.train(small(), "epochs=1", out=tmp_path / "runs", quiet=True)
    assert not (Path(results["run"]) / "report.html").exists()
    with pytest.raises(ExciteError, match=r"give a recipe .* or a run folder to resume \(resume=RUN\)"):
        package.train()


def test_compare_writes_what_the_command_writes(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = package.compare(tiny.gated, tiny.bare, labels="se,none", device="cpu")
    assert [str(path) for path in result.files] == ["compare.html", "compare.csv"]
    assert all(path.is_file() for path in result.files)
    assert [row["label"] for row in result.found["rows"]] == ["se", "none"]
    again = package.compare([tiny.gated, str(tiny.bare)], labels=["se", "none"], out="again.html", device="cpu")
    assert again.files[0].name == "again.html"
    assert again.found["rows"] == result.found["rows"]
    page = result._repr_html_()
    assert "<td" in page
    assert "se</td>" in page
    assert "McNemar" in page
    none = package.compare.compare([tiny.gated, tiny.bare], "data.limit_val=50", device="cpu")
    assert none.files == ()
    assert [row["images"] for row in none.found["rows"]] == [50, 50]


def test_explain_writes_what_the_command_writes(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = picture(tmp_path / "<photo>.png")
    result = package.explain(tiny.gated, photo, images=30, ablation="estimate", timing=False, device="cpu")
    assert str(result.folder) == f"explain-{tiny.gated.name}"
    assert (result.folder / "explain.json").is_file()
    assert (result.images, len(result.explained)) == (30, 1)
    page = result._repr_html_()
    assert "layer1.0.gate" in page
    assert "data:image/png;base64," in page
    assert "<photo>" not in page  # it is somebody's text
    assert "&lt;photo&gt;.png" in page


def test_validate_and_report_give_pairs_that_show_themselves(tiny, tmp_path):
    validation = package.validate(tiny.gated, device="cpu")
    predictor, evaluation = validation
    assert validation.predictor is predictor
    assert f"{evaluation.top1:.2f}" in validation._repr_html_()
    assert "cpu, folded, fp32" in predictor._repr_html_()
    assert "&lt;i&gt;9" in predictor._repr_html_()
    reported = package.report(tiny.gated, images=20, quick=True, out=tmp_path / "page.html", device="cpu")
    numbers, path = reported
    assert path == tmp_path / "page.html"
    assert f"{numbers['accuracy']['top1']:.2f} %" in reported._repr_html_()


def test_a_recipe_and_a_plan_show_themselves():
    recipe = load_recipe("digits-seresnet20", {"data.root": None, "model": {"name": "cifar_seresnet20"}})
    page = recipe._repr_html_()
    assert "<b>digits-seresnet20</b>" in page
    assert "cifar_seresnet20" in page
    assert "image_size: 16" in page
    plan = package.graft(package.create_model("cifar_resnet20"), "se", dry_run=True)
    assert "layer1.0" in plan._repr_html_()
    assert f"{plan.added:,} new parameters" in plan._repr_html_()


def test_graft_takes_a_name_as_the_command_does(tiny, tmp_path):
    result = package.graft(tiny.bare, "se", at=["layer3.*"], reduction=8, out=tmp_path / "grafted.safetensors")
    assert result["difference"] == 0.0
    assert result["gate"] == {"name": "se", "reduction": 8, "identity": True}
    assert {row["place"][:6] for row in result["places"]} == {"layer3"}
    assert package.load(tmp_path / "grafted.safetensors").meta["model"]["args"]["gate"]["reduction"] == 8
    net = package.create_model("cifar_resnet20")
    with pytest.raises(TypeError, match=r"^out= is only for a network given by name"):
        package.graft(net, "se", out="x.safetensors")
    with pytest.raises(TypeError, match=r"^inplace= is only for a network in memory"):
        package.graft("cifar_resnet20", "se", inplace=True)


def test_convert_takes_paths(tiny, tmp_path, capsys):
    found = package.convert(tiny.gated / "model.safetensors", tmp_path / "net.safetensors")
    assert found["destination"] == str(tmp_path / "net.safetensors")
    assert "written: " in capsys.readouterr().out


def test_bench_gives_rows_and_takes_lists(monkeypatch):
    from excite.bench import build

    asked = []
    monkeypatch.setattr(build, "run_in_turns", lambda settings, *_: asked.extend(settings) or [])
    monkeypatch.setattr(build, "make_rows", lambda settings, answers, version: [{"error": "x"} for _ in settings])
    found = package.bench("resnet50", batch=[1, 16], precision="fp32,bf16", train=False)
    assert len(found["rows"]) == 4
    assert {(s.batch, s.precision, s.mode) for s in asked} == {
        (batch, precision, "infer") for batch in (1, 16) for precision in ("fp32", "bf16")
    }
    with pytest.raises(ExciteError, match="--batch is for models"):
        package.bench("train.batch_size=3", data="digits-seresnet20", batch=3)


def test_twins_take_a_recipe_and_names_in_one_string(tmp_path, monkeypatch):
    from excite.twins import runner

    plans = []

    def stop(plan, *_):
        plans.append(plan)
        raise ExciteError("far enough")

    monkeypatch.setattr(runner, "_check", stop)
    for gates in ("none, se", ["none", "se"]):
        with pytest.raises(ExciteError, match="far enough"):
            package.twins(small("mixup=0.0"), "epochs=2", gates=gates, seeds=1, out=tmp_path / "exp", quiet=True)
    assert plans[0] == plans[1]
    assert plans[0].gates == ("none", "se")
    assert plans[0].recipe.train.epochs == 2


@pytest.mark.heavy
@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_trains_with_workers_whether_it_guards_its_main_or_not(guarded, tmp_path):
    """Decoding workers import no main module; nothing is trained twice, and `model(...)` works in the same script."""
    from PIL import Image

    for part, count in (("train", 16), ("val", 4)):
        for name in ("dark", "light"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                shade = (40 if name == "dark" else 200) + i
                Image.new("L", (20, 24), shade).save(tmp_path / "photos" / part / name / f"{i}.png")
    recipe = {**SMALL, "data": {"source": "folder", "image_size": 16, "in_chans": 1, "mode": "stream", "workers": 2}}
    (tmp_path / "small.yaml").write_text(json.dumps(recipe))
    lines = [
        "results = excite.train('small.yaml', epochs=1, mixup=0.0, data={'root': 'photos'}, quiet=True)",
        "model = excite.load(results['run'])",
        "print(len(model('photos/val')), len(excite.validate(results['run'])), flush=True)",
    ]
    lines = ["if __name__ == '__main__':", *(f"    {line}" for line in lines)] if guarded else lines
    (tmp_path / "script.py").write_text("\n".join(["import excite", "print('begun', flush=True)", *lines]))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "begun\n8 2\n", done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


def picture(path: Path) -> Path:
    from PIL import Image

    Image.new("L", (20, 20), 128).save(path)
    return path
