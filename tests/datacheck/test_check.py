"""Each fault is planted and found; data without faults give none."""

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from excite import check_data
from excite.errors import ExciteError
from tests.datacheck.conftest import clean, jpeg, picture, write
from tests.report.test_page import Reader


def names(finding) -> list[str]:
    return [f"{each['part']}/{each['name']}" for each in finding["examples"]]


def contents(root) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_data_without_faults_give_no_findings(tmp_path, checked):
    found = checked(clean(tmp_path / "data"))
    kinds = set(found) - {"numbers", "path"}
    assert kinds == set()
    assert found["numbers"]["about"]["images"] == {"training": 90, "validation": 30}
    assert not any(each["gives_away"] for each in found["numbers"]["giveaways"])


def test_every_kind_of_file_and_copy_is_planted_and_found_once(tmp_path, checked):
    root = clean(tmp_path / "data")
    train, val = root / "train", root / "val"
    write(train / "cat" / "cut.jpg", jpeg(picture(900))[:800])
    write(val / "dog" / "empty.jpg", b"")
    out = io.BytesIO()
    picture(901).save(out, "PNG")
    write(train / "elk" / "lies.jpg", out.getvalue())
    write(train / "cat" / "cmyk.jpg", jpeg(picture(902).convert("CMYK")))
    write(train / "cat" / "tiny.jpg", jpeg(picture(903, (9, 7))))
    write(train / "dog" / "long.jpg", jpeg(picture(904, (300, 40))))
    write(train / "dog" / "plain.jpg", jpeg(Image.new("RGB", (64, 48), (200, 30, 90))))
    same, near, mirrored, other, leaked, bright = (train / "cat" / f"{k:03d}.jpg" for k in range(6))
    write(train / "cat" / "same.jpg", same.read_bytes())
    image = Image.open(near)
    write(train / "cat" / "near.jpg", jpeg(image.resize((64, 48), box=(3, 2, 61, 46)), 60))
    write(train / "cat" / "mirrored.jpg", jpeg(ImageOps.mirror(Image.open(mirrored))))
    write(train / "dog" / "other.jpg", jpeg(Image.open(other), 70))
    out = io.BytesIO()
    Image.open(train / "elk" / "000.jpg").save(out, "PNG")
    write(train / "elk" / "again.png", out.getvalue())
    write(val / "cat" / "leaked.jpg", leaked.read_bytes())
    write(val / "cat" / "bright.jpg", jpeg(ImageEnhance.Brightness(Image.open(bright)).enhance(1.2)))
    before = contents(root)
    found = checked(root)
    assert contents(root) == before  # nothing is ever changed
    broken = {each["name"]: each["detail"] for each in found["broken"]["examples"]}
    assert set(broken) == {"cat/cut.jpg", "dog/empty.jpg"}
    assert "empty" in broken["dog/empty.jpg"]
    assert [(e["name"], e["detail"]) for e in found["endings"]["examples"]] == [("elk/lies.jpg", "PNG called .jpg")]
    assert names(found["modes"]) == ["training/cat/cmyk.jpg"]
    assert names(found["tiny"]) == ["training/cat/tiny.jpg"]
    assert names(found["shapes"]) == ["training/dog/long.jpg"]
    assert names(found["constant"]) == ["training/dog/plain.jpg"]
    assert found["copies"]["count"] == 4
    told = {each["name"]: each["detail"] for each in found["copies"]["examples"]}
    assert told["cat/same.jpg"] == "same bytes as cat/000.jpg"
    assert told["cat/near.jpg"] == "near copy of cat/001.jpg"
    assert told["cat/mirrored.jpg"] == "mirror image of cat/002.jpg"
    assert told["elk/again.png"] == "same pixels as elk/000.jpg"
    assert found["conflicts"]["count"] == 2
    assert set(names(found["conflicts"])) == {"training/cat/003.jpg", "training/dog/other.jpg"}
    assert found["leaks"]["count"] == 2
    leaks = {each["name"]: each["detail"] for each in found["leaks"]["examples"] if each["part"] == "validation"}
    assert leaks == {
        "cat/leaked.jpg": "same bytes as cat/004.jpg (training)",
        "cat/bright.jpg": "near copy of cat/005.jpg (training)",
    }
    order = [each["kind"] for each in found["numbers"]["findings"]]
    assert order == ["broken", "leaks", "conflicts", "copies", "constant", "endings", "tiny", "shapes", "modes"]


def test_groups_of_many_copies_are_whole(tmp_path, checked):
    root = clean(tmp_path / "data", 20, 5)
    image = picture(800, (64, 64))
    for number in range(7):
        write(root / "train" / "elk" / f"copy{number}.jpg", jpeg(image, 40 + 8 * number))
    found = checked(root)
    assert found["copies"]["count"] == 6
    assert len({each["group"] for each in found["copies"]["examples"]}) == 1


def test_a_second_check_looks_at_changed_files_only_and_finds_the_same(tmp_path, checked):
    root = clean(tmp_path / "data", 20, 5)
    write(root / "train" / "cat" / "cut.jpg", jpeg(picture(900))[:800])
    first, again = checked(root), checked(root)
    assert first["numbers"]["about"]["looked_at_now"] == 76
    assert again["numbers"]["about"]["looked_at_now"] == 0
    assert {**first["numbers"], "about": None} == {**again["numbers"], "about": None}
    write(root / "train" / "cat" / "cut.jpg", jpeg(picture(901)))
    write(root / "val" / "dog" / "same.jpg", (root / "val" / "dog" / "000.jpg").read_bytes())
    changed = checked(root)
    assert changed["numbers"]["about"]["looked_at_now"] == 2
    assert "broken" not in changed
    assert changed["copies"]["count"] == 1
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(b"damaged")
    assert checked(root)["copies"]["count"] == 1


def test_a_format_or_a_colour_that_gives_the_class_away_is_named(tmp_path, checked):
    root = tmp_path / "data"
    for number in range(60):
        out = io.BytesIO()
        picture(number).save(out, "PNG")
        write(root / "cat" / f"{number}.png", out.getvalue())
        write(root / "dog" / f"{number}.jpg", jpeg(picture(1000 + number)))
    found = checked(root)
    away = {each["what"] for each in found["numbers"]["giveaways"] if each["gives_away"]}
    assert away == {"format", "file size"}
    assert (
        "The format alone tells the class in 100 % of the images (balanced; chance 5" in found["giveaways"]["sentence"]
    )


def test_uneven_classes_are_told(tmp_path, checked):
    root = clean(tmp_path / "data", 10, 5)
    for number in range(30):
        write(root / "train" / "dog" / f"more{number}.jpg", jpeg(picture(2000 + number)))
    found = checked(root)
    assert found["imbalance"]["sentence"] == "dog has 4.0 times as many training images as cat."


def test_an_outlier_is_told(tmp_path, checked):
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for name, colour in (("cat", (200, 60, 60)), ("dog", (60, 60, 200))):
        for number in range(40):
            base = np.asarray(picture(int(rng.integers(1 << 30)), (64, 64)), np.float32)
            mixed = (0.3 * base + 0.7 * np.array(colour)).astype(np.uint8)
            write(root / name / f"{number}.jpg", jpeg(Image.fromarray(mixed)))
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8], stripes[:, 1::8], stripes[::16, :, 1] = 255, 255, 255
    write(root / "cat" / "stripes.jpg", jpeg(Image.fromarray(stripes)))
    found = checked(root)
    assert [each["name"] for each in found["outliers"]["examples"]] == ["cat/stripes.jpg"]


def test_hostile_names_stay_text(tmp_path, checked):
    root = clean(tmp_path / "data", 12, 4)
    bad = ['"><img src=x onerror=alert(1)>.jpg', "</script><b>.jpg", 'a\nb,"c".jpg', "\u202egpj.jpg", "[red].jpg"]
    for number, name in enumerate(bad):
        data = jpeg(picture(700 + number))
        write(root / "train" / "cat" / name.replace("/", "\u2215"), data)
        write(root / "val" / "dog" / name.replace("/", "\u2215"), data)
    os.rename(os.fsencode(root / "val" / "elk" / "000.jpg"), os.fsencode(root / "val" / "elk") + b"/\xff.jpg")
    found = checked(root)
    assert found["leaks"]["count"] == 5
    html = found["path"].read_text()
    read = Reader(html)
    assert read.open == []
    assert not any(key.startswith("on") for _, attributes in read.tags for key in attributes)
    assert [tag for tag, _ in read.tags].count("script") == 1
    keys = [json.loads(a["data-key"])["name"] for t, a in read.tags if t == "figure" and "data-key" in a]
    assert {f"cat/{bad[0]}", f"cat/{bad[2]}", f"cat/{bad[4]}"} <= set(keys)
    assert "\u202e" not in html


def test_few_images_are_checked_and_it_says_what_is_not_judged(tmp_path, checked):
    root = tmp_path / "data"
    write(root / "cat" / "1.jpg", jpeg(picture(1)))
    write(root / "cat" / "2.jpg", jpeg(picture(2)))
    write(root / "dog" / "1.jpg", jpeg(picture(1)))
    found = checked(root)
    assert found["conflicts"]["count"] == 2
    missing = " ".join(found["numbers"]["about"]["not_judged"])
    assert "labels of all parts: 3 images are too few" in missing
    assert "give the class away" in missing


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": 3}, "only one class"),
        ({"cat": 3, "dog": 0}, "class folders without images: dog"),
        ({}, "no class folders"),
    ],
)
def test_what_no_training_could_use_is_one_sentence(tmp_path, classes, message):
    root = tmp_path / "data"
    root.mkdir()
    for name, count in classes.items():
        (root / name).mkdir()
        for number in range(count):
            write(root / name / f"{number}.jpg", jpeg(picture(number)))
    with pytest.raises(ExciteError, match=message):
        check_data(root, out=tmp_path / "check.html")


def test_data_that_cannot_be_read_at_all_are_one_sentence(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / "data" / name / "1.jpg", b"nothing")
    with pytest.raises(ExciteError, match="none of 2 images can be read; the first is "):
        check_data(tmp_path / "data", out=tmp_path / "check.html")


def test_the_command_prints_the_worst_first_and_is_strict_when_asked(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = clean(tmp_path / "data", 12, 4)
    status, out, _ = command("data", "check", "data", "--strict")
    assert status == 0
    assert (tmp_path / "data-check.html").is_file()
    assert "160" not in out
    write(root / "val" / "cat" / "leak.jpg", (root / "train" / "cat" / "000.jpg").read_bytes())
    status, out, _ = command("data", "check", "data")
    assert status == 0
    assert out.startswith("Of 49 images: 1 copied from another part.")
    status, out, _ = command("data", "check", "data", "--strict", "--json")
    assert status == 1
    numbers = json.loads(out)
    assert numbers["findings"][0]["kind"] == "leaks"
    assert numbers["file"] == "data-check.html"


def test_a_run_is_judged_by_its_network_and_its_accuracy_is_restated(tiny, tmp_path, command):
    run = shutil.copytree(tiny.gated, tmp_path / "run")
    status, out, err = command("data", "check", run, "data.limit_train=1000", "data.limit_val=300", "--json")
    assert status == 0, err
    numbers = json.loads(out)
    assert (run / "data-check.html").is_file()
    assert [each["part"] for each in numbers["labels"]] == ["training", "validation"]
    assert all(0 <= each["percent_low"] <= each["percent"] <= each["percent_high"] <= 50 for each in numbers["labels"])
    [restated] = numbers["restated"]
    assert restated["part"] == "validation"
    measured, without, by_truth = restated["rows"]
    assert measured["images"] == 300
    # The digits of one writer look alike: there are copies between the parts.
    leaked = numbers["findings"][0]
    assert leaked["kind"] == "leaks"
    assert without["images"] == by_truth["images"] == 300 - restated["leaked"] == 300 - leaked["count"]
    assert by_truth["top1"] >= without["top1"]
    assert by_truth["top1_low"] < by_truth["top1"] < by_truth["top1_high"]
    text = (run / "data-check.html").read_text()
    assert "Accuracy restated" in text


def test_the_accuracy_as_measured_is_that_of_validate(tiny, tmp_path):
    from excite import validate

    numbers, _ = check_data(tiny.bare, out=tmp_path / "check.html")
    _, evaluation = validate(tiny.bare)
    assert numbers["restated"][0]["rows"][0]["top1"] == pytest.approx(evaluation.top1)


def test_features_of_a_named_network(tiny, tmp_path, checked):
    found = checked(None, "data.source=digits", "data.limit_train=600", weights=tiny.bare)
    assert found["numbers"]["about"]["features"] == "the network of --weights"
    assert found["numbers"]["restated"] == []
    with pytest.raises(ExciteError, match="leave --weights out"):
        check_data(tiny.bare, weights=tiny.bare, out=tmp_path / "check.html")


def test_marks_become_a_csv_in_a_browser(browser, tmp_path, checked):
    root = clean(tmp_path / "data", 12, 4)
    odd = 'a "b", c.jpg'
    write(root / "train" / "dog" / odd, (root / "train" / "cat" / "000.jpg").read_bytes())
    found = checked(root)
    browser.get(found["path"].as_uri())
    browser.get_log("browser")
    ask = browser.execute_script
    figures = "[...document.querySelectorAll('#conflicts .marked')]"
    mark = f"""
        const labelled = (label) => {figures}.find((f) => JSON.parse(f.dataset.key).label === label);
        const mark = (label) => labelled(label).querySelector(".mark").click();
    """
    assert ask("return document.getElementById('save-changes').disabled")
    ask(mark + "mark('dog')")
    assert ask("return document.getElementById('marked-count').textContent") == "1 marked."
    ask(mark + "mark('cat'); mark('cat')")  # the first click proposes the other class
    ask(
        """
        window.saved = new Promise((done) => {
          URL.createObjectURL = (blob) => { blob.text().then(done); return "#"; };
        });
        document.getElementById("save-changes").click();
        """
    )
    text = browser.execute_async_script("window.saved.then(arguments[0])")
    rows = list(csv.DictReader(io.StringIO(text)))
    wanted = {
        (f"dog/{odd}", "dog", "relabel", "cat", str(root / "train" / "dog" / odd)),
        ("cat/000.jpg", "cat", "remove", "", str(root / "train" / "cat" / "000.jpg")),
    }
    assert {(r["name"], r["label"], r["action"], r["to"], r["path"]) for r in rows} == wanted
    assert {row["part"] for row in rows} == {"training"}
    assert text == ask("return document.getElementById('changes').textContent")
    options = f"""
        const select = {figures}[0].querySelector("select");
        select.focus();
        select.dispatchEvent(new Event("focus"));
        return [...select.options].map((o) => o.textContent);
    """
    assert {"no change", "remove", "keep", "→ cat", "→ dog", "→ elk"} <= set(ask(options))
    assert browser.get_log("browser") == []


def test_the_lines_of_the_docs_make_the_changes(tmp_path, monkeypatch):
    """The two Python blocks of "Make the changes", for class folders and for a table, run on a list of changes."""
    text = (Path(__file__).parents[2] / "docs" / "data-check.md").read_text()
    folders, table = re.findall(r"```python\n(.*?)```", text.split("### Make the changes")[1], re.DOTALL)
    head = "part,name,label,path,action,to\n"
    monkeypatch.chdir(tmp_path)
    for place in ("cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg", "dog/3.jpg"):
        write(tmp_path / "photos" / "train" / place, place.encode())
    at = "photos/train"
    rows = [
        f"training,cat/1.jpg,cat,{at}/cat/1.jpg,relabel,dog",
        f"training,cat/deep/2.jpg,cat,{at}/cat/deep/2.jpg,relabel,dog",
        f"training,dog/1.jpg,dog,{at}/dog/1.jpg,remove,",
        f"training,dog/3.jpg,dog,{at}/dog/3.jpg,keep,",
    ]
    (tmp_path / "changes.csv").write_text(head + "\n".join(rows) + "\n")
    exec(folders)
    there = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.jpg")}
    assert there == {
        f"{at}/dog/cat-1.jpg": "cat/1.jpg",
        f"{at}/dog/cat-2.jpg": "cat/deep/2.jpg",
        f"{at}/dog/3.jpg": "dog/3.jpg",
        "removed/training/dog/1.jpg": "dog/1.jpg",
    }
    (tmp_path / "labels.csv").write_text(
        "path,label,part\na.jpg,cat,train\nb.jpg,cat|dog,train\nc.jpg,dog,val\nd.jpg,dog,val\n"
    )
    rows = ["training,a.jpg,cat,a.jpg,relabel,cat|dog", "training,b.jpg,cat|dog,b.jpg,relabel,none"]
    rows += [f"validation,c.jpg,dog,{tmp_path / 'c.jpg'},remove,"]
    (tmp_path / "changes.csv").write_text(head + "\n".join(rows) + "\n")
    exec(table)
    changed = (tmp_path / "labels-changed.csv").read_text().split()
    assert changed == ["path,label,part", "a.jpg,cat|dog,train", "b.jpg,,train", "d.jpg,dog,val"]


def test_what_shows_nothing_has_no_wrong_label_and_many_copies_hide_no_others(tmp_path, checked):
    root = clean(tmp_path / "data", 40, 10)
    for name in ("cat", "dog", "elk"):
        for number in range(40):  # told by colour, so that labels can be judged
            shade = Image.new("RGB", (64, 48), {"cat": "red", "dog": "green", "elk": "blue"}[name])
            image = Image.blend(picture(1000 + 40 * len(name) + number + ord(name[0]), (64, 48)), shade, 0.6)
            write(root / "train" / name / f"{number:03d}.jpg", jpeg(image))
    blank = write(root / "train" / "cat" / "blank.png", b"")
    Image.new("RGB", (64, 48), "blue").save(blank)
    one = (root / "train" / "dog" / "000.jpg").read_bytes()
    for number in range(30):
        write(root / "train" / "dog" / f"again{number}.jpg", one)
    write(root / "train" / "elk" / "twice.jpg", (root / "train" / "elk" / "001.jpg").read_bytes())
    found = checked(root, pictures=12)
    assert [each["name"] for each in found["constant"]["examples"]] == ["cat/blank.png"]
    assert found["numbers"]["labels"]
    for kind in ("labels", "labels-perhaps"):
        assert not any(each["name"] == "cat/blank.png" for each in found.get(kind, {"examples": []})["examples"])
    text = found["path"].read_text()
    shown = text[text.index('id="copies"') : text.index('id="constant"')]
    assert shown.count('class="mark"') == 8  # six of the one, two of the other
    assert "elk/twice.jpg" in shown
