"""Several labels an image: missing and invented labels, mAP by the true ones, outliers, what gives a class away."""

import json

import numpy as np
import pytest
from PIL import Image

from excite.datacheck.decisions import fit_decisions, judged_classes, true_precision
from excite.datacheck.giveaways import find_giveaways
from excite.datacheck.judged import restated_precision
from excite.datacheck.look import ROW, Looks
from excite.datacheck.outliers import find_outliers
from excite.datacheck.restated import Share
from excite.measures import mean_average_precision, sigmoid
from tests.datacheck.conftest import jpeg, picture, write


def drawn(count: int, missing: float, invented: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are 1.5 times too sharp, the true labels, and the given ones."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.normal(size=(count, 8)) - 3
    true = (rng.random(logits.shape) < sigmoid(logits)).astype(np.uint8)
    chance = rng.random(logits.shape)
    given = np.where(true > 0, chance >= missing, chance < invented).astype(np.uint8)
    return (1.5 * logits).astype(np.float32), true, given


@pytest.mark.parametrize(("missing", "invented"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.03), (0.15, 0.02)])
def test_missing_and_invented_labels_are_told_apart(missing, invented):
    logits, true, given = drawn(4000, missing, invented)
    found = fit_decisions(logits, given, judged_classes(logits, given))
    for rate, share in ((found.missing, missing), (found.invented, invented)):
        assert rate.low <= rate.share <= rate.high
        assert rate.low - 0.002 <= share <= rate.high + 0.002
        assert rate.high - rate.low < 0.04
    of_given = (given[true == 0]).sum() / max(1, given.sum())
    assert found.given_wrongly.share == pytest.approx(of_given, abs=0.01)
    assert found.curve[0] == pytest.approx(1 / 1.5, abs=0.05)
    listed, wrong = found.wrong >= 0.5, given != true
    # Each is wrong with the probability that is told, and nothing is listed where nothing is wrong.
    assert (
        listed.sum() < 10
        if not wrong.any()
        else found.wrong[listed].mean() == pytest.approx(wrong[listed].mean(), abs=0.08)
    )


def test_a_classifier_that_is_never_sure_does_not_judge_what_is_missing():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(1500, 8)) - 2).astype(np.float32)
    labels = (rng.random(logits.shape) < sigmoid(logits)).astype(np.uint8)
    found = fit_decisions(logits, labels, judged_classes(logits, labels))
    assert found.vague
    assert found.missing.low == 0


def test_classes_that_are_rare_or_guessed_are_not_judged():
    logits, _, given = drawn(500, 0.0, 0.0)
    given[:, 0] = np.arange(500) < 5
    logits[:, 1] = np.random.default_rng(1).normal(size=500)
    assert judged_classes(logits, given).tolist() == [False, False] + [True] * 6
    assert not fit_decisions(logits, given, judged_classes(logits, given)).wrong[:, :2].any()


def test_the_map_by_the_true_labels_is_unbiased():
    """By hand; then over 60 draws of the labels of the same images."""
    scores, labels = np.array([[3.0], [2.0], [1.0]], np.float32), np.array([[1], [0], [1]], np.uint8)
    assert true_precision(scores, labels, 0, 0) == pytest.approx(100 * (1 + 2 / 3) / 2)
    rng, (logits, true, _) = np.random.default_rng(0), drawn(1500, 0, 0)
    naive, restated = [], []
    for _ in range(60):
        chance = rng.random(true.shape)
        given = np.where(true > 0, chance >= 0.2, chance < 0.02).astype(np.uint8)
        naive.append(mean_average_precision(logits, given))
        restated.append(true_precision(logits, given, 0.2, 0.02))
    exact = mean_average_precision(logits, true)
    assert np.mean(naive) < exact - 10
    assert np.mean(restated) == pytest.approx(exact, abs=4 * np.std(restated) / 60**0.5)


def test_the_interval_of_the_restated_map_holds_the_truth():
    logits, true, given = drawn(2000, 0.1, 0.01, seed=3)
    by_labels = mean_average_precision(logits, given) / 100
    found = fit_decisions(logits, given, judged_classes(logits, given))
    share = restated_precision(logits, given, Share(2000, by_labels, by_labels - 0.01, by_labels + 0.01), found)
    assert by_labels < share.low < mean_average_precision(logits, true) / 100 < share.high


def test_an_outlier_of_several_classes_is_one_of_each():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 3)) < 0.4).astype(np.uint8)
    values = (labels @ rng.normal(size=(3, 20)) + 0.05 * rng.normal(size=(300, 20))).astype(np.float32)
    values[labels.sum(1) == 0] += 1
    assert (find_outliers(values, labels, np.arange(300)) > 0).sum() <= 3
    values[7] = -8 * rng.normal(size=20)
    assert find_outliers(values, labels, np.arange(300)).argmax() == 7


def test_a_size_that_gives_one_of_several_classes_away():
    rng, rows = np.random.default_rng(0), np.zeros(400, ROW)
    labels = (rng.random((400, 4)) < 0.3).astype(np.uint8)
    rows["width"], rows["height"], rows["bytes"] = 64, 64, rng.integers(900, 2000, 400)
    names = ["cat", "dog", "elk", "fox"]
    assert not any(each["gives_away"] for each in find_giveaways(Looks(rows, {}, 0), labels, names))
    rows["height"][labels[:, 2] > 0] = 80
    first = find_giveaways(Looks(rows, {}, 0), labels, names)[0]
    assert first["gives_away"]
    assert first["label"] == "elk"
    assert first["accuracy"] == 100


def test_labels_of_a_table_are_judged_and_the_page_proposes_what_is_missing(tmp_path, command):
    """Without a run: three colours, of which a picture shows any; some labels are planted wrong."""
    rng, shades = np.random.default_rng(0), {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
    rows, planted = [], {}
    for number in range(600):
        own = [name for name in shades if rng.random() < 0.4]
        image = Image.blend(Image.new("RGB", (48, 48), "grey"), picture(number, (48, 48)), 0.4)
        for name in own:
            image.paste(Image.new("RGB", (16, 48), shades[name]), (16 * list(shades).index(name), 0))
        write(tmp_path / f"{number:03}.jpg", jpeg(image))
        given = list(own)
        if number % 40 == 7:
            given = [name for name in shades if (name in own) != (name == "green")]
            planted[f"{number:03}.jpg"] = (given, own)
        rows.append(f"{number:03}.jpg,{'|'.join(given)}")
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    page = tmp_path / "page.html"
    status, out, err = command("data", "check", tmp_path / "labels.csv", "task=multilabel", "--out", page, "--json")
    assert status == 0, err
    numbers = json.loads(out)
    assert [each["what"] for each in numbers["labels"]] == ["missing", "invented"]
    found = [
        each
        for finding in numbers["findings"]
        if finding["kind"] in ("labels", "labels-perhaps")
        for each in finding["examples"]
    ]
    proposed = {each["name"]: each["instead"] for each in found}
    assert len(proposed) <= len(planted) + 5
    assert {name: set(proposed[name].split("|")) for name in planted} == {
        name: set(own or ["none"]) for name, (_, own) in planted.items()
    }
    assert all("green is" in each["detail"] for each in found if each["name"] in planted)
    assert page.read_text().count('class="mark"') >= len(planted)
