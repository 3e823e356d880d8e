"""The real command: the page, its numbers in results.json, and what happens when something is missing."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from excite import cli
from excite.errors import ExciteError
from excite.recipe import as_yaml, load_recipe
from excite.report.after_training import report_on_run
from excite.report.build import report
from excite.report.render import headline
from excite.report.reproduce import overrides_between, reproducing_command
from excite.trained.accuracy import validate
from tests.report.test_page import Reader
from tests.training.small import CLASSES, small


def leaves(value):
    """All numbers in nested values."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif isinstance(value, int | float):
        yield float(value)


def test_the_page_has_everything_and_its_numbers_are_in_results_json(reported, trained):
    html = (reported / "report.html").read_text(encoding="utf-8")
    read = Reader(html)
    assert read.open == []
    ids = {a.get("id") for _, a in read.tags}
    sections = "summary curves confusion classes calibration mistakes robustness gates speed origin"
    assert set(sections.split()) <= ids
    results = json.loads((reported / "results.json").read_text())
    before = json.loads((trained / "results.json").read_text())
    assert {k: v for k, v in results.items() if k != "report"} == before
    numbers = results["report"]
    known = set(leaves(numbers))
    shown = [float(a["data-sort"]) for t, a in read.tags if t == "td" and a.get("data-sort")]
    assert len(shown) > 100
    assert set(shown) <= known
    _, evaluation = validate(reported)
    assert numbers["accuracy"]["top1"] == evaluation.top1 == results["top1"]
    assert numbers["accuracy"]["top5"] == evaluation.top5
    assert numbers["calibration"]["nll"] == pytest.approx(evaluation.loss, rel=1e-5)
    assert numbers["robustness"]["images"] == 20
    assert len(numbers["robustness"]["rows"]) == 25
    assert len(numbers["gates"]["rows"]) == 9
    assert numbers["gates"]["images"] == 20
    photographs = sum(1 for t, _ in read.tags if t == "img")
    assert photographs == min(24, evaluation.images - round(evaluation.top1))
    assert f"{evaluation.top1:.2f} %" in html
    low, high = numbers["accuracy"]["top1_low"], numbers["accuracy"]["top1_high"]
    first = f"{evaluation.top1:.1f} % of {evaluation.images} validation images right"
    assert read.texts[read.texts.index(headline(numbers)) - 1].strip() == ""
    assert headline(numbers).startswith(f"{first}; 95 % interval {low:.1f} to {high:.1f} %; ")
    assert (reported / "predictions.npz").is_file()


def test_the_headline_names_the_weakest_classes_and_rounds_no_error_away(reported):
    numbers = json.loads((reported / "results.json").read_text())["report"]

    def told(recalls, images=200, right=199):
        rows = [{"class": f"c{k}", "support": 50, "recall": recall} for k, recall in enumerate(recalls)]
        accuracy = {**numbers["accuracy"], "images": images, "right": right, "top1": 100 * right / images}
        return headline({**numbers, "accuracy": accuracy, "classes": {**numbers["classes"], "rows": rows}})

    assert told([98.0, 100.0, None]).endswith("; weakest class c0 (49 of 50)")
    assert told([98.0, 100.0, 98.0]).endswith("; weakest classes c0 (49 of 50), c2 (49 of 50)")
    assert told([0.0] * 4 + [2.0]).endswith("; 4 classes are the weakest, at 0.0 % each")
    assert "weakest" not in told([100.0, 100.0])
    assert told([98.0, 100.0]).startswith("99.5 % of 200 ")
    assert told([98.0, 100.0], 5000, 4999).startswith("99.98 % of 5,000 ")


def test_the_command_on_the_page_gives_the_same_recipe(reported, tmp_path):
    numbers = json.loads((reported / "results.json").read_text())["report"]
    words = shlex.split(numbers["about"]["command"])
    assert words[:2] == ["excite", "train"]
    assert load_recipe(*words[2:3], words[3:]) == load_recipe(str(reported))
    changed = load_recipe(
        "cifar10-seresnet20",
        ["data.root=/a b/c'd", "epochs=3", "model.options={reduction: 8}", "train.freeze=[conv1]", "batch_size=32",
         "data.class_names=['on', 'ü', '1']", "checkpoint.every_minutes=", "augment.rand_augment=null"],
    )  # fmt: skip
    words = shlex.split(reproducing_command(changed, {"processes": 1}, "runs/x"))
    assert words[:3] == ["excite", "train", "cifar10-seresnet20"]
    assert load_recipe(words[2], words[3:]) == changed
    assert reproducing_command(small(), None, "runs/x") == "excite train runs/x"
    assert reproducing_command(small(), None, None) == "excite train recipe.yaml"
    two = reproducing_command(load_recipe("digits-seresnet20"), {"processes": 2}, "")
    assert two == "torchrun --nproc-per-node 2 -m excite train digits-seresnet20"
    assert overrides_between(small(), small("epochs=9")) == ["train.epochs=9"]


def test_other_data_and_fewer_images_leave_the_runs_own_report_alone(reported):
    before = {name: (reported / name).read_bytes() for name in ("report.html", "results.json", "predictions.npz")}
    words = ["report.robustness_images=0", "report.gate_images=0", "report.mistakes=0"]
    numbers, path = report(reported, words, images=40)
    assert numbers["accuracy"]["images"] == 40
    assert (numbers["robustness"], numbers["gates"], numbers["mistakes"]) == (None, None, [])
    assert re.fullmatch(r"report-[0-9a-f]{8}\.html", path.name)
    html = path.read_text()
    assert "not the validation images of the training" in html
    assert not {"robustness", "gates", "mistakes"} & {a.get("id") for _, a in Reader(html).tags}
    for line in ("robustness_images=1000", "gate_images=1000", "mistakes=24"):  # one line each says how to measure it
        assert html.count(f"<code>excite report {reported} report.{line}</code>") == 1
    numbers, _ = report(reported, [*words, "data.split_seed=9"], quick=True)
    assert numbers["about"]["data_fingerprint"] != numbers["about"]["data_of_training"]
    assert {name: (reported / name).read_bytes() for name in before} == before


def test_a_checkpoint_alone_and_a_network_without_gates(run, tmp_path):
    alone = Path(shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors"))
    numbers, path = report(alone, ["report.gate_images=0"], quick=True)
    assert path == tmp_path / "alone-report.html"
    html = path.read_text(encoding="utf-8")
    assert "a checkpoint without a run folder: curves, training speed and environment are not known" in html
    assert not {"curves", "gates"} & {a.get("id") for _, a in Reader(html).tags}
    assert f"<code>excite report {alone} report.gate_images=1000</code>" in html
    assert numbers["about"]["command"] == "excite train recipe.yaml"  # no run folder that it could name
    assert "With the recipe below saved as recipe.yaml, this command trains it again:" in html
    assert (numbers["curves"], numbers["summary"]["ms_per_step"]) == (None, None)
    assert {row["severity"] for row in numbers["robustness"]["rows"]} == {1, 3, 5}
    from excite.explain import outer_gates
    from excite.report import build, render
    from excite.trained.predictor import load

    assert build.has_gates(load(alone))
    assert outer_gates(load(alone).model)
    changed = {"gated": False, "command": None, "trained_as": "cifar_senet", "unreadable_images": 3}
    study = build.Study({**numbers, "gates": None, "about": {**numbers["about"], **changed}})
    study.photographs = [__import__("numpy").zeros((8, 8, 1), "uint8")] * len(numbers["mistakes"])
    page = render.make_page(study, tmp_path).render()
    assert "This network has no gates." in page
    assert "top-5 accuracy" in page
    assert "3 images could not be read" in page
    study.numbers["about"]["gates_of_timm"] = ["timm's SEModule"]
    study.numbers["about"]["classes"] = 5  # all of which are among the best five
    page = render.make_page(study, tmp_path).render()
    assert "no gates of excite; it has timm&#39;s SEModule, which excite cannot explain" in page
    assert "top-5 accuracy" not in page
    assert "was trained as cifar_senet; excite graft or excite prune then added or removed gates" in page


def test_images_that_cannot_be_read_are_left_out_and_counted(run, tmp_path):
    for part in ("train", "val"):
        for number in range(len(CLASSES)):
            folder = tmp_path / "data" / part / f"{number}"
            folder.mkdir(parents=True)
            Image.new("L", (9, 8), 20 * number).save(folder / "good.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    for name in ("broken.jpg", "too.jpg"):  # no number of the report is of these
        (tmp_path / "data" / "train" / "0" / name).write_bytes(b"no image")
    other = ["data.source=folder", f"data.root={tmp_path / 'data'}", f"data.class_names={as_yaml(CLASSES)}"]
    less = ["report.robustness_images=0", "report.gate_images=0", "report.mistakes=0"]
    with pytest.raises(ExciteError, match=r"cannot read image .*broken\.jpg"):
        report(run, [*other, *less])
    for mode in ("memory", "stream"):
        numbers, path = report(run, [*other, *less, "data.on_bad_val=skip", f"data.mode={mode}"])
        counted = numbers["about"]["validation_images"], numbers["about"]["unreadable_images"]
        assert counted == (len(CLASSES), 1)
        assert "1 image could not be read" in path.read_text(encoding="utf-8")


@pytest.mark.heavy
def test_every_figure_has_files(run, tmp_path):
    less = ["report.robustness_images=10", "report.gate_images=10", "report.mistakes=0"]
    _, path = report(run, less, figures=tmp_path / "figures", quick=True)
    names = ("loss", "accuracy", "learning-rate", "confusion", "reliability", "robustness", "health", "excitations")
    wanted = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == wanted
    assert path.read_text(encoding="utf-8").count("<svg ") == len(names)
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.getpixel((0, 0)) == (255, 255, 255, 255)  # readable wherever it is shown
    with pytest.raises(ExciteError, match="already exists; name a new folder"):
        report(run, figures=tmp_path / "figures")


@pytest.mark.parametrize("severity", [*range(2)])
def test_robustness_repeats(run, severity):
    from excite.report.build import study_robustness
    from excite.trained.opened import open_trained

    found = [study_robustness(open_trained(run), 15, severities=[5], seed=severity) for _ in range(2)]
    assert found[0] == found[1]


def test_robustness_holds_one_batch_at_a_time_and_does_not_depend_on_its_size(run, monkeypatch):
    import weakref

    from excite.report import build
    from excite.trained.opened import open_trained

    alive: list[weakref.ref] = []
    most = [0]
    genuine = build._chosen_batches

    def watched(opened):
        for pixels, labels in genuine(opened):
            alive.append(weakref.ref(pixels))
            most[0] = max(most[0], sum(ref() is not None for ref in alive))
            yield pixels, labels
            del pixels

    whole = build.study_robustness(open_trained(run, ["eval.batch_size=100"]), 40)
    monkeypatch.setattr(build, "_chosen_batches", watched)
    told: list[tuple[int, int]] = []
    found = build.study_robustness(
        open_trained(run, ["eval.batch_size=4"]), 40, progress=lambda done, total: told.append((done, total))
    )
    assert found == whole
    assert len(alive) == 10
    assert most[0] <= 2  # the one before is let go once the next is there
    assert told[-1] == (26 * 40, 26 * 40)


def test_mistakes_of_users_are_sentences(run, tmp_path):
    with pytest.raises(ExciteError, match="no run folder or checkpoint"):
        report(tmp_path / "nowhere")
    with pytest.raises(ExciteError, match="did you mean"):
        report(run, ["report.robustnes_images=0"])
    (run / "environment.json").write_text("{")
    with pytest.raises(ExciteError, match=r"environment\.json cannot be read as JSON"):
        report(run, ["report.robustness_images=0", "report.gate_images=0"])
    (run / "results.json").write_text("[1]")
    with pytest.raises(ExciteError, match=r"results\.json does not hold a JSON object"):
        report(run, ["report.robustness_images=0", "report.gate_images=0"])
    assert not (run / "report.html").exists()


def test_where_it_cannot_be_written_is_told_before_the_work(run, tmp_path, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("it has begun to measure")

    monkeypatch.setattr("excite.report.build.study_opened", never)
    (tmp_path / "file").touch()
    with pytest.raises(ExciteError, match=r"file is not a folder"):
        report(run, out=tmp_path / "file" / "page.html")
    with pytest.raises(ExciteError, match="is a folder; name a file in it"):
        report(run, out=tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != run)  # root may write everywhere
    with pytest.raises(ExciteError, match="is read-only for you; name another place"):
        report(run)


@pytest.mark.parametrize("images", [None, 10])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.json", '{"top1": "x"}', r"results\.json is damaged: top1 is 'x', .*writes it again"),
        ("environment.json", '{"versions": 3}', r"environment\.json is damaged: versions is 3, .*delete it to go on"),
        ("environment.json", "{", r"environment\.json cannot be read as JSON"),
    ],
)
def test_a_damaged_file_of_the_run_is_told_before_the_work(run, name, content, said, images, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("it has begun to open the network")

    monkeypatch.setattr("excite.report.build.open_trained", never)
    (run / name).write_text(content)
    with pytest.raises(ExciteError, match=said):
        report(run, images=images)


def test_an_unfinished_run_with_a_damaged_record_has_a_page_that_says_so(run):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").unlink()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"kind": "eva\xff\xfe')
    numbers, path = report(run, ["report.robustness_images=0", "report.gate_images=0", "report.mistakes=0"])
    assert numbers["about"]["finished"] is False
    html = path.read_text(encoding="utf-8")
    assert f"This run is not finished: the weights are those of epoch {results['best_epoch']:g} of 2" in html
    state = next((run / "checkpoints").iterdir())
    before = sorted((run / "checkpoints").iterdir())
    _, path = report(state, ["report.robustness_images=0", "report.gate_images=0", "report.mistakes=0"])
    assert path == run / f"{state.name}-report.html"
    assert sorted((run / "checkpoints").iterdir()) == before


def test_training_by_the_command_ends_with_a_report(tmp_path, monkeypatch, capsys):
    recipe = small("train.epochs=1", "data.limit_train=64", "data.limit_val=30", "report.write=true", "mixup=0.0",
                   "report.robustness_images=0", "report.gate_images=0")  # fmt: skip
    (tmp_path / "small.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.app(["train", "small.yaml"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    run = next((tmp_path / "runs").iterdir())
    assert f"report {Path('runs') / run.name / 'report.html'}" in printed
    assert "report.html" in printed.split("environment.json")[0]
    assert json.loads((run / "results.json").read_text())["report"]["accuracy"]["images"] == 30


@pytest.mark.parametrize("error", [ExciteError("the disk is full"), MemoryError(), KeyboardInterrupt()])
def test_a_report_that_fails_does_not_fail_the_training(run, monkeypatch, capsys, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("excite.report.build.report", fail)
    report_on_run(run, quiet=False)
    told = capsys.readouterr().err
    assert told.startswith(f"the report was not written ({str(error) or type(error).__name__}); the run is complete")
    assert told.count("\n") == 1
