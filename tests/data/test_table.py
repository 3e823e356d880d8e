"""Tables as people have them: what is found by itself, and what is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excite.data import AugmentConfig, DataConfig, DataSets, TrainLoader, open_data
from excite.data.count import count_data
from excite.data.root import source_of
from excite.errors import ExciteError


@pytest.fixture
def place(tmp_path) -> Path:
    """Twelve pictures of three classes."""
    for i in range(12):
        path = tmp_path / "pictures" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(path)
    return tmp_path


def opened(path: Path, text: str | bytes, **options) -> DataSets:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_data(DataConfig(source="table", root=str(path), image_size=8, in_chans=1, mode="stream", **options))


def rows(between: str = ",", path: str = "pictures/{:02}.png", more: str = "") -> str:
    return "".join(f"{path.format(i)}{between}{'abc'[i % 3]}{more}\n" for i in range(12))


@pytest.mark.parametrize(
    ("name", "header", "between"),
    [
        ("a.csv", "path,label", ","),
        ("a.csv", "Image;Class", ";"),
        ("a.csv", "file_name|category", "|"),
        ("a.csv", "FILENAME\tspecies", "\t"),
        ("a.tsv", "filepath\ty", "\t"),
    ],
)
def test_columns_and_what_stands_between_them_are_found_and_said(place, name, header, between):
    data = opened(place / name, f"{header}\n{rows(between)}")
    assert data.classes == ["a", "b", "c"]
    assert len(data.train) + len(data.val) == 12
    path, label = header.split(between)
    assert f"{name}: 12 rows; images from {path}, labels from {label}" in data.describe()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_as_spreadsheets_write_it(place, encoding):
    text = "path,label,remark\r\n" + rows(more=',"häßlich, ""rot""\r\nund groß"').replace("\n", "\r\n")
    data = opened(place / "a.csv", text.replace(",a,", ",Ähre,").encode(encoding))
    assert data.classes == ["b", "c", "Ähre"]
    assert "not used: remark" in data.describe()


def test_columns_that_are_named(place):
    text = "path,label,what,where,side\n" + "".join(
        f"x,y,{'ab'[i % 2]},pictures/{i:02}.png,{'train' if i < 8 else 'val'}\n" for i in range(12)
    )
    data = opened(place / "a.csv", text, columns={"path": "where", "label": "what", "part": "side"})
    assert (data.classes, len(data.train), len(data.val)) == (["a", "b"], 8, 4)
    with pytest.raises(ExciteError, match=r"data\.columns\.label=wat: .*no such column; did you mean 'what'"):
        opened(place / "a.csv", text, columns={"label": "wat"})


@pytest.mark.parametrize(
    ("column", "train", "val"),
    [
        ("part", "Train", "valid"),
        ("split", "training", "dev"),
        ("Is Valid", "no", "yes"),
        ("is_train", "True", "False"),
    ],
)
def test_parts(place, column, train, val):
    text = f"path,label,{column}\n" + "".join(
        f"pictures/{i:02}.png,{'abc'[i % 3]},{train if i < 6 else val}\n" for i in range(12)
    )
    data = opened(place / "a.csv", text, columns={"part": column})
    assert (len(data.train), len(data.val)) == (6, 6)
    without = opened(place / "a.csv", text, columns={"part": False})
    assert without.split
    with pytest.raises(ExciteError, match=r"has 'Q' \(row 2\), which is no part: write .*data\.columns\.part=false"):
        opened(place / "a.csv", text.replace(train, "Q", 1))


def test_numbers_as_classes_are_in_the_order_of_numbers(place):
    text = "path,label\n" + "".join(f"pictures/{i:02}.png,{[2, 10, 1][i % 3]}\n" for i in range(12))
    assert opened(place / "a.csv", text).classes == ["1", "2", "10"]
    assert opened(place / "a.csv", text, class_order="string").classes == ["1", "10", "2"]
    lines = "".join(json.dumps({"image": f"pictures/{i:02}.png", "label": float(i % 3)}) + "\n" for i in range(12))
    assert opened(place / "a.jsonl", lines).classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pictures\\{:02}.png", "\\ read as /"),
        ("pictures/{:02}", ".png added to each"),
        ("pictures\\{:02}", "\\ read as / and .png added to each"),
        ("/home/her/pictures/{:02}.png", "/home/her/ left out"),
        ("C:\\her\\pictures\\{:02}.png", "\\ read as / and C:/her/ left out"),
        ("pictures/{:02}.JPG", ".png instead of their endings"),
        ("Pictures\\{:02}.PNG", "12 differ from their files in upper and lower case"),
        ("PICTURES/{:02}", ".png added to each and upper and lower case as the files have it"),
        (
            "C:\\Her\\Pictures\\{:02}.PNG",
            "\\ read as / and C:/Her/ left out and upper and lower case as the files have it",
        ),
    ],
)
def test_paths_as_others_write_them(place, path, said):
    data = opened(place / "a.csv", "path,label\n" + rows(path=path))
    assert len(data.train) + len(data.val) == 12
    assert f"paths of the images: {said}" in data.describe()


def test_each_row_is_read_in_the_way_that_finds_its_file(place):
    mixed = "path,label\n" + rows()[: 6 * 18] + rows(path="pictures\\{:02}")[6 * 14 :]
    data = opened(place / "a.csv", mixed)
    assert len(data.train) + len(data.val) == 12
    assert "\\ read as / and .png added to each (6 of 12 rows)" in data.describe()


def test_what_differs_is_said_of_the_rows_that_differ(place):
    mixed = (
        rows()[: 2 * 18] + rows(path="pictures\\{:02}.png")[2 * 18 : 7 * 18] + rows(path="PICTURES/{:02}.png")[7 * 18 :]
    )
    said = opened(place / "a.csv", "path,label\n" + mixed).describe()
    assert "\\ read as / (5 of 12 rows)" in said
    assert "5 differ from their files in upper and lower case (or in how accents are stored)" in said
    assert "the first is 'PICTURES/07.png'" in said


def test_two_ways_to_write_a_path_are_one_image(place):
    """Else an image could be in training and validation, or have two labels."""
    text = "path,label\n" + rows()
    for other in (
        f"{place}/pictures/03.png",
        "pictures\\03.png",
        "PICTURES/03.PNG",
        "Pictures\\03",
        ".//pictures/03.PNG",
    ):
        with pytest.raises(
            ExciteError, match=r"rows 5 and 14: .*03(\.png|\.PNG)?' has two labels, 'a' and 'b'; keep one"
        ):
            opened(place / "a.csv", f"{text}{other},b\n")
        assert "1 rows repeat others" in opened(place / "a.csv", f"{text}{other},a\n").describe()


def test_where_disks_take_upper_and_lower_case_for_the_same_a_file_is_one_image(place):
    (place / "pictures" / "03.PNG").hardlink_to(place / "pictures" / "03.png")  # as such a disk shows it
    with pytest.raises(ExciteError, match=r"rows 5 and 14: 'pictures/03\.PNG' has two labels, 'a' and 'b'"):
        opened(place / "a.csv", "path,label\n" + rows() + "pictures/03.PNG,b\n")
    (place / "pictures" / "04.PNG").write_bytes((place / "pictures" / "04.png").read_bytes())  # another file
    data = opened(place / "a.csv", "path,label\n" + rows() + "pictures/04.PNG,b\n")
    assert len(data.train) + len(data.val) == 13


def test_accents_as_macos_stores_them(place):
    names = ["Käse", "Ka\u0308se"]
    (place / "pictures" / f"{names[1]}.png").write_bytes((place / "pictures" / "00.png").read_bytes())
    data = opened(place / "a.csv", "path,label\n" + rows() + "".join(f"pictures/{name}.png,a\n" for name in names))
    assert len(data.train) + len(data.val) == 13
    assert "1 differ from their files in upper and lower case (or in how accents are stored)" in data.describe()


def test_paths_start_from_the_folder_that_is_named_or_are_absolute(place):
    (place / "tables").mkdir()
    table = place / "tables" / "a.csv"
    text = "path,label\n" + rows(path="{:02}.png")
    with pytest.raises(ExciteError, match=r"12 of 12 images are not there .*with data\.images=FOLDER"):
        opened(table, text)
    data = opened(table, text, images=str(place / "pictures"))
    assert len(data.train) + len(data.val) == 12
    absolute = opened(table, "path,label\n" + rows(path=f"{place}/pictures/{{:02}}.png"))
    assert absolute.fingerprint != data.fingerprint
    with pytest.raises(ExciteError, match=r"data\.images=.*none is not a folder"):
        opened(table, text, images=str(place / "none"))


def test_rows_without_a_file_stop_the_run_or_are_left_out(place):
    text = "path,label\n" + rows() + "gone.png,a\nhttps://host/a.png,b\n"
    with pytest.raises(
        ExciteError, match=r"2 of 14 images are not there \(row 14: 'gone\.png': there is no such file; "
    ):
        opened(place / "a.csv", text)
    data = opened(place / "a.csv", text, on_bad_val="skip")
    assert "2 rows without a file are left out; the first is gone.png (row 14)" in data.describe()
    assert data.unusable[1] == ("https://host/a.png (row 15)", "it is an address: download the images first")
    parts = "path,label,part\n" + rows(more=",train") + "pictures/00.png,a,val\ngone.png,a,train\n"
    with pytest.raises(
        ExciteError, match=r"rows 2 and 14: 'pictures/00\.png' has two parts, 'train' and 'val'; keep one"
    ):
        opened(place / "a.csv", parts)
    fine = opened(place / "a.csv", parts.replace("pictures/00.png,a,train\n", ""))
    assert (len(fine.train), len(fine.val)) == (11, 1)


def test_paths_that_no_system_has(place):
    lines = "".join(json.dumps({"path": f"pictures/{i:02}.png", "label": "ab"[i % 2]}) + "\n" for i in range(12))
    data = opened(place / "a.jsonl", lines + '{"path": "a\\u0000b", "label": "a"}\n', on_bad_val="skip")
    assert data.unusable[0][1] == "it is no path"


def test_rows_that_repeat_or_contradict_others(place):
    text = "path,label\n" + rows()
    data = opened(place / "a.csv", text + "pictures/03.png,a\n./pictures/04.png,b\n")
    assert "2 rows repeat others and are used once: rows 14, 15" in data.describe()
    with pytest.raises(ExciteError, match=r"rows 5 and 14: 'pictures/03\.png' has two labels, 'a' and 'b'; keep one"):
        opened(place / "a.csv", text + "pictures/03.png,b\n")


def test_a_test_part_without_labels_is_not_used(place):
    text = "path,label,part\n" + rows(more=",train").replace("pictures/11.png,c,train", "pictures/11.png,,test")
    data = opened(place / "a.csv", text)
    assert data.test is None
    assert "the test part is not used: none of its 1 rows has a label" in data.describe()


def test_groups_in_two_parts_are_said(place):
    text = "path,label,part,patient\n" + "".join(
        f"pictures/{i:02}.png,{'abc'[i % 3]},{'train' if i < 6 else 'val'},p{i // 4}\n" for i in range(12)
    )
    told = opened(place / "a.csv", text).describe()
    assert "1 groups are in more than one part, so results are too optimistic: 'p1' is" in told
    assert "groups from patient" in told
    shared = {Path(path).name: group for path, group in opened(place / "a.csv", text).shared.items()}
    assert shared == {f"{i:02}.png": "p1" for i in (4, 5, 6, 7)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("pictures/00.png,a\npictures/01.png,b\n", "has no header: its first row must name the columns"),
        ("path,label,label\na,b,c\n", "has two columns 'label': rename one of them"),
        (
            "a,b\n1,2\n",
            r"which column has the paths of the images\? It has a, b: name it with data\.columns\.path=NAME",
        ),
        ("path,b\n1,2\n", r"which column has the labels\? .*data\.columns\.label=NAME"),
        ("path,label\na.png,b,\na.png,b,c\n", "row 3: it has 3 values, but the header has 2 columns"),
        ('path,label\na.png,"b\n', "row 2: unexpected end of data"),
        ("path,label\npictures/00.png,a\n,b\n", r"column 'path' \(the image\) is empty in row 3"),
        ("path,label\npictures/00.png,\n", r"column 'label' \(the label\) is empty in row 2"),
        ("path,label\npictures/00.png,a\npictures/01.png,a\n", "has only one class, 'a'"),
        (
            "path,label,part\npictures/00.png,a,train\npictures/01.png,b,\n",
            r"column 'part' \(the part\) is empty in row 3",
        ),
        (
            "path,label,part\npictures/00.png,a,train\npictures/02.png,b,train\npictures/01.png,bb,val\n",
            "row 4: the val image has class 'bb', which no training image has; did you mean 'b'",
        ),
        (
            "path,label,part\npictures/00.png,a,test\npictures/02.png,b,test\n",
            "has no training images, only: test",
        ),
        (b"path,label\n\xe9.png,a\n", r"row 2: it is not UTF-8 text \(byte 0xe9\); save it as UTF-8"),
        (b"path,label\n\0,a\n", "is not text: it has a NUL byte"),
        ("path,id\n" + "".join(f"pictures/{i % 12:02}.png,{i}\n" for i in range(30)), "which column has the labels"),
        (
            "path,label\n" + "".join(f"pictures/{i:02}.png,{i}\n" for i in range(30)),
            r"column 'label' has 30 different values in 30 rows; is it the class\?",
        ),
    ],
)
def test_mistakes_in_a_table_are_one_sentence(place, text, message):
    with pytest.raises(ExciteError, match=message) as failed:
        opened(place / "a.csv", text)
    assert "a.csv" in str(failed.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "row 2: it is not JSON"), ("[1]", "row 2: it is not an object"), ("[" * 100_000, "row 2: it is not JSON")],
)
def test_mistakes_in_json_lines_are_one_sentence(place, line, message):
    with pytest.raises(ExciteError, match=message):
        opened(place / "a.jsonl", '{"path": "pictures/00.png", "label": "a"}\n' + line + "\n")


def test_other_files_are_no_tables(place):
    for name, content, message in (
        ("a.txt", b"x", "is not a table: .*give its folder with .*; otherwise give a file that ends in"),
        ("a.xlsx", b"x", "is not a table: save it in the spreadsheet program as CSV, a file that ends in"),
        ("a.dat", b"x", "is not a table: give a file that ends in"),
        ("a.parquet", b"PAR1 damaged", "cannot be read as Parquet"),
    ):
        with pytest.raises(ExciteError, match=message):
            opened(place / name, content)
    with pytest.raises(ExciteError, match=r"has neither \.parquet files nor lists of images"):
        open_data(DataConfig(source="table", root=str(place / "pictures"), image_size=8))
    with pytest.raises(ValueError, match="columns is only for source=table"):
        DataConfig(source="folder", image_size=8, columns={"label": "x"})


def test_counts_without_reading_images(place):
    text = "path,label\n" + rows()
    (place / "a.csv").write_text(text)
    counted = count_data(DataConfig(source="table", root=str(place / "a.csv"), image_size=224))
    assert counted.train + (counted.val or 0) == 12
    assert counted.classes == 3


def test_a_folder_of_lists_with_parts_as_in_pascal_voc(place):
    lists = place / "lists"
    lists.mkdir()
    (lists / "cat_train.txt").write_text("00  1\n01 -1\n02  0\n03  1\n04 -1\n")
    (lists / "dog_train.txt").write_text("00  1\n01  1\n02 -1\n03 -1\n04 -1\n")
    for name in ("cat", "dog"):
        (lists / f"{name}_val.txt").write_text("05  1\n06 -1\n")
        (lists / f"{name}_trainval.txt").write_text("00 1\n")
    (lists / "train.txt").write_text("00\n01\n02\n03\n04\n")
    options = {
        "source": "table",
        "root": str(lists),
        "images": str(place / "pictures"),
        "image_size": 8,
        "mode": "stream",
    }
    data = open_data(DataConfig(**options, task="multilabel"))
    assert data.classes == ["cat", "dog"]
    assert data.train.labels.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0], [0, 0]]
    assert data.val.labels.tolist() == [[1, 1], [0, 0]]
    said = data.describe()
    assert "lists that are not used: cat_trainval.txt, dog_trainval.txt" in said
    assert "3 of 7 images have none of the classes" in said
    lines = "rows 1 of cat_train.txt and 1 of dog_train.txt: '00' has two labels, 'cat' and 'dog'; keep one"
    with pytest.raises(ExciteError, match=lines):
        open_data(DataConfig(**options))
    with (lists / "dog_train.txt").open("a") as file:
        file.write("\n77 1\n")
    notes = open_data(DataConfig(**options, task="multilabel")).notes
    assert "1 rows without a file are left out; the first is 77 (row 7 of dog_train.txt)" in notes


def test_lists_of_parts_with_a_class_in_each_line(place):
    lists = place / "lists"
    lists.mkdir()
    options = {"source": "table", "root": str(lists), "images": str(place / "pictures"), "image_size": 8}
    (lists / "train.txt").write_text("".join(f"{i:02}.png {i % 2}\n" for i in range(8)))
    (lists / "val.txt").write_text("\n".join(f"{i:02}.png\t{i % 2}" for i in range(8, 12)))
    data = open_data(DataConfig(**options, in_chans=1))
    assert (data.classes, len(data.train), len(data.val)) == (["0", "1"], 8, 4)
    assert sorted(data.val.labels.tolist()) == [0, 0, 1, 1]
    (lists / "val.txt").write_text("08.png\n")
    with pytest.raises(ExciteError, match=r"val\.txt, row 1: there is no class behind the image"):
        open_data(DataConfig(**options))


def test_one_column_of_0_and_1_for_each_class(place):
    """As the challenges of ISIC give one class an image."""
    text = "image,MEL,NV\n" + "".join(f"pictures/{i:02},{float(i % 3 == 0)},{float(i % 3 != 0)}\n" for i in range(12))
    data = opened(place / "a.csv", text)
    assert data.classes == ["MEL", "NV"]
    assert sum(data.train.labels) + sum(data.val.labels) == 8
    both = text.replace("01,0.0", "01,1.0")
    with pytest.raises(ExciteError, match="which column has the labels"):
        opened(place / "a.csv", both)
    with pytest.raises(ExciteError, match=r"row 3: it has 2 classes \(MEL, NV\).*say task=multilabel"):
        opened(place / "a.csv", both, columns={"label": ["MEL", "NV"]})


def test_rows_as_spreadsheets_end_and_begin_them(place):
    short = rows(";").replace("05.png;c\n", "05.png;c;;;\n")
    data = opened(place / "a.csv", f"sep=;\r\npath;label;remark\n{short}")
    assert len(data.train) + len(data.val) == 12
    assert "11 rows have fewer values than the header (the first is row 3)" in data.describe()
    with pytest.raises(ExciteError, match=r"row 4: it has 4 values, but the header has 3 columns"):
        opened(place / "a.csv", "sep=;\npath;label;remark\n" + rows(";").replace("01.png;b\n", "01.png;b;;x\n"))


def test_class_names_that_are_hardly_meant_are_said(place):
    text = "path,label\n" + rows().replace("04.png,b", "04.png,B").replace("05.png,c", "05.png,nan")
    said = opened(place / "a.csv", text).describe()
    assert "1 classes are spelt in several ways and trained as several, such as 'B' and 'b'" in said
    assert "'nan' is a class: if it stands for a missing label, remove its images" in said


def test_a_folder_of_lists_of_one_class_each(place):
    lists = place / "lists"
    lists.mkdir()
    for k, name in enumerate("abc"):
        (lists / f"{name}.txt").write_text("".join(f"{i:02}.png\n" for i in range(k, 12, 3)))
    data = open_data(DataConfig(source="table", root=str(lists), images=str(place / "pictures"), image_size=8))
    assert data.classes == ["a", "b", "c"]
    assert len(data.train) + len(data.val) == 12
    (lists / "b_val.txt").write_text("00.png\n")
    with pytest.raises(ExciteError, match="some lists are of parts"):
        open_data(DataConfig(source="table", root=str(lists), images=str(place / "pictures"), image_size=8))


def test_weights_say_how_often_images_are_drawn(place):
    weights = [0, 1, 2, 0.5, 1, 1, 1, 1, 1, 1, 1, 1.5]
    text = "path,label,part,weight\n" + "".join(
        f"pictures/{i:02}.png,{'ab'[i % 2]},train,{w}\n" for i, w in enumerate(weights)
    )
    text += "other.png,a,val,1\n"
    Image.new("L", (8, 8), 7).save(place / "other.png")
    plain = opened(place / "a.csv", text)
    assert "the weights in 'weight' have no effect: data.sampler=weights draws images by them" in plain.describe()
    for mode in ("memory", "stream"):
        config = DataConfig(
            source="table", root=str(place / "a.csv"), image_size=8, in_chans=1, mode=mode, sampler="weights", workers=0
        )
        train = open_data(config).train
        seen = {}
        for epoch in range(40):
            loader = TrainLoader(train, batch_size=4, seed=1, device="cpu", augment=AugmentConfig(), data_config=config)
            whole = np.concatenate([loader.batch_indices(epoch, step) for step in range(3)])
            assert (whole == np.concatenate([loader.batch_indices(epoch, step) for step in range(3)])).all()
            for name in (Path(train.names[i]).stem for i in whole):
                seen[name] = seen.get(name, 0) + 1
        for i, weight in enumerate(weights):
            assert abs(seen.get(f"{i:02}", 0) - 40 * weight) <= (8 if weight % 1 else 0), (i, seen)
    for wrong, said in (("-1", "is '-1'"), ('"1,5"', r"is '1,5' \(write 1\.5\)"), ("", "is missing")):
        with pytest.raises(ExciteError, match=rf"row 3: the weight in 'weight' {said}, not a number of at least 0"):
            opened(place / "a.csv", text.replace("b,train,1\n", f"b,train,{wrong}\n", 1), sampler="weights")
    with pytest.raises(ValueError, match="only for tables"):
        DataConfig(source="folder", image_size=8, sampler="weights")
    bare = opened(place / "a.csv", "path,label\n" + rows(), sampler="weights")
    with pytest.raises(ExciteError, match="needs a table with a column of weights"):
        TrainLoader(
            bare.train,
            batch_size=4,
            seed=1,
            device="cpu",
            augment=AugmentConfig(),
            data_config=DataConfig(source="table", image_size=8, sampler="weights"),
        )


def test_lists_of_numbers_have_the_names_that_the_file_gives(place):
    """As Hugging Face's library writes several labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["ant", "bee", "asp", "cat"]}}
    table = pa.table(
        {"path": [f"pictures/{i:02}.png" for i in range(12)], "label": [[(0, 1, 3)[i % 3], 0] for i in range(12)]}
    )
    info = json.dumps({"info": {"features": {"label": labels}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), place / "a.parquet")
    data = open_data(DataConfig(source="table", root=str(place / "a.parquet"), image_size=8, task="multilabel"))
    assert data.classes == ["ant", "bee", "cat"]
    assert "1 of 4 classes are left out, as no image has them: asp" in data.notes


def test_what_has_no_effect_is_said(place):
    text = "path,label,patient\n" + "".join(f"pictures/{i:02}.png,{'ab'[i % 2]},p{i // 3}\n" for i in range(12))
    told = opened(place / "a.csv", text, group_by="([0-9])[0-9]").describe()
    assert "the groups in 'patient' have no effect: data.group_by=([0-9])[0-9] names others" in told
    assert "groups are kept together (data.group_by" in told


def test_columns_as_hospitals_name_them(place):
    lines = [f"{i:02}.png,{'A|B' if i % 3 else 'No Finding'},{i // 2}" for i in range(12)]
    text = "Image Index,Finding Labels,Patient ID\n" + "\n".join(lines)
    data = opened(place / "a.csv", text, images=str(place / "pictures"), task="multilabel")
    assert data.classes == ["A", "B", "No Finding"]
    said = " ".join(data.notes)
    assert "groups from Patient ID" in said
    assert "labels of an image are separated by '|' (data.columns.separator)" in said
    assert "always answering" not in data.describe()


@pytest.mark.parametrize("columns", [False, True])
def test_a_name_for_no_class_is_said_and_can_be_told(place, columns):
    found = ["No Finding" if i % 3 == 0 else "A|No Finding" if i == 1 else "A|B" for i in range(12)]
    lines = [f"pictures/{i:02}.png,{label}" for i, label in enumerate(found)]
    text = "path,label\n" + "\n".join(lines)
    if columns:
        flags = [[int(name in label.split("|")) for name in ("A", "B", "No Finding")] for label in found]
        lines = [f"pictures/{i:02}.png,{a},{b},{none}" for i, (a, b, none) in enumerate(flags)]
        text = "path,A,B,No Finding\n" + "\n".join(lines)
    data = opened(place / "a.csv", text, task="multilabel")
    assert data.classes == ["A", "B", "No Finding"]
    assert (
        "'No Finding' is trained as a class: 5 images have it, 1 of them beside others; if it says that an image has "
        "none, say data.columns.none='No Finding'"
    ) in data.notes
    told = opened(place / "a.csv", text, task="multilabel", columns={"none": "No Finding"})
    assert told.classes == ["A", "B"]
    assert sorted(np.concatenate([told.train.labels, told.val.labels]).sum(1).tolist()) == [0] * 4 + [1] + [2] * 7
    said = " ".join(told.notes)
    assert "5 images have 'No Finding', which is no class (data.columns.none); 1 of them have classes" in said
    assert "4 of 12 images have none of the classes" in said
    other = opened(place / "a.csv", text, task="multilabel", columns={"none": ["no finding"]})
    assert "no image has 'no finding' (data.columns.none); did you mean 'No Finding'?" in other.notes


def test_values_that_are_neither_0_nor_1_are_counted(place):
    lines = [f"pictures/{i:02}.png,{i % 2},{['', -1, 1.0][i % 3]}" for i in range(12)]
    data = opened(place / "a.csv", "path,A,B\n" + "\n".join(lines), task="multilabel")
    assert "4 values of the 2 classes are empty: they count as 0" in data.notes
    assert "4 values of the 2 classes are -1: they count as 0" in data.notes


@pytest.mark.parametrize(
    ("mark", "task", "says"),
    [
        ("|", "classes", "task=multilabel"),
        (" / ", "classes", "task=multilabel data.columns.separator=/"),
        ("+", "multilabel", "data.columns.separator=+"),
    ],
)
def test_several_classes_that_are_written_as_one_are_said(place, mark, task, says):
    text = "path,label\n" + "".join(
        f"pictures/{i:02}.png,{['ant', 'bee', f'ant{mark}bee'][i % 3]}\n" for i in range(12)
    )
    data = opened(place / "a.csv", text, columns={"separator": "|"} if task == "multilabel" else None, task=task)
    [note] = [note for note in data.notes if "join others" in note]
    assert note.startswith("1 of 3 classes join others, such as")
    assert note.endswith(f"say {says}")


def test_a_list_is_named_after_one_class(place):
    (place / "lists").mkdir()
    for name, of in (("polar bear", range(6)), ("fox", range(4, 12))):
        (place / "lists" / f"{name}.txt").write_text("".join(f"{i:02}.png\n" for i in of))
    where = {"root": str(place / "lists"), "images": str(place / "pictures")}
    data = open_data(DataConfig(source="table", image_size=8, in_chans=1, task="multilabel", **where))
    assert data.classes == ["fox", "polar bear"]
    assert source_of(str(place / "lists")) == "table"
    (place / "lists" / "fox").mkdir()
    assert source_of(str(place / "lists")) == "folder"  # class folders, and a text beside them


@pytest.mark.parametrize("source", ["folder", "digits", "idx"])
def test_sources_of_one_class_each_refuse_several(source):
    with pytest.raises(ValueError, match="whose images have one class each: give data"):
        DataConfig(source=source, root="x", image_size=8, task="multilabel")
