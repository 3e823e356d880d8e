"""Every data source is checked: its parts, its broken files, its copies; and images of other bands than colours."""

from dataclasses import replace

import numpy as np
import pytest

from excite import check_data
from excite.commands.data import show_check
from excite.console import Display
from tests.data.every_source import SOURCES, Item, items
from tests.datacheck.conftest import write

#: But for Hugging Face's library, which reads the same Parquet files.
NAMES = [name for name in SOURCES if name != "hub"]


def planted(name: str) -> list[Item]:
    """Images of all parts; one of the last part is a copy of a training image, and a file is cut off."""
    source = SOURCES[name]
    found = [item for part in source.parts for item in items(3, part, len(part))]
    train, last = found[0], found[-1]
    found[-1] = replace(last, pixels=train.pixels)
    if source.files:
        found.append(replace(train, name="cut", broken=True))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_source(name, tmp_path):
    place = tmp_path / "data"
    kinds = SOURCES[name].write(place, planted(name))
    words = [f"data.{key}={value}" for key, value in kinds.items() if key != "root"]
    numbers, _ = check_data(kinds["root"], words, out=tmp_path / "check.html")
    parts = {"train": "training", "val": "validation", "test": "test"}
    own = SOURCES[name].parts
    there = {"training": 30 + SOURCES[name].files, "validation": 30} | ({"test": 30} if len(own) == 3 else {})
    assert numbers["about"]["images"] == there
    found = {each["kind"]: each for each in numbers["findings"]}
    assert found["leaks"]["count"] == 1
    last = "validation" if len(own) == 2 else parts[own[-1]]  # the test part of CIFAR and IDX is validated on
    assert found["leaks"]["examples"][0]["part"] == last
    assert found["leaks"]["examples"][0]["detail"].startswith("same bytes as ")
    if SOURCES[name].files:
        assert found["broken"]["count"] == 1
        assert "cut" in found["broken"]["examples"][0]["name"] or name == "parquet"
    again, _ = check_data(kinds["root"], words, out=tmp_path / "check.html")
    assert again["about"]["looked_at_now"] == 0


@pytest.mark.parametrize("name", ["csv", "webdataset", "folder"])
def test_groups_that_are_in_several_parts_are_a_finding(name, tmp_path, capsys):
    """Patients 0 to 4 are in the training part, 3 to 7 in the last one: two patients in both."""
    found = [item for part in ("train", "val") for item in items(2, part, len(part))]
    images = [replace(each, group=f"patient-{i % 5 + 3 * (each.part == 'val')}") for i, each in enumerate(found)]
    kinds = SOURCES[name].write(tmp_path / "data", images)
    words = [f"data.{key}={value}" for key, value in kinds.items() if key != "root"]
    words += ["data.group_by=patient-[0-9]"] if name == "folder" else []
    checked = check_data(kinds["root"], words, out=tmp_path / "check.html")
    groups = next(each for each in checked.numbers["findings"] if each["kind"] == "groups")
    assert groups["count"] == 8  # of 20, four of each
    assert {each["part"] for each in groups["examples"]} == {"validation"}
    details = {f"of 'patient-{k}', of which 4 images are in the training part" for k in (3, 4)}
    assert {each["detail"] for each in groups["examples"]} == details
    assert checked.fails
    assert "Groups across parts" in checked.path.read_text()
    show_check(checked.numbers, checked.path, Display())
    assert "groups across parts" in capsys.readouterr().out


def test_bands_are_read_as_numbers_and_shown_as_colours(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    rng, kind = np.random.default_rng(0), {"photometric": "minisblack", "planarconfig": "contig"}
    for label in ("field", "wood"):
        for number in range(4):
            path = write(tmp_path / "data" / label / f"{number}.tif", b"")
            tifffile.imwrite(path, rng.integers(0, 256, (20, 30, 5), dtype=np.uint8), **kind)
    write(tmp_path / "data" / "wood" / "same.tif", (tmp_path / "data" / "wood" / "0.tif").read_bytes())
    numbers, page = check_data(tmp_path / "data", ["data.in_chans=5"], out=tmp_path / "check.html")
    kinds = {each["kind"]: each["count"] for each in numbers["findings"]}
    assert kinds.get("copies", 0) + kinds.get("leaks", 0) == 1
    assert "broken" not in kinds
    assert "pictures show the first three of 5 bands" in " ".join(numbers["about"]["notes"])
    assert page.read_text().count("<img ") == 2
