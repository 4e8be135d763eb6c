"""Data as people have them, in files; and what they are told of a file that is not right."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fluffle import ClientData, read_csv, read_images, read_npz, read_parquet
from fluffle.schemas import UserError
from fluffle.worker.tasks.client_data import among_sites

VISITS = """age,ward,stay,pain
61,north,3.5,yes
47,south,1,no
70,north,2,no
"""
TREES = """height,girth,fruit,leaf
2,0.5,1,0
4,1.5,0,1
"""


def whose(data: ClientData) -> list[str]:
    assert data.owners is not None
    return [data.clients[owner] for owner in data.owners]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def save_npz(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def paint(path: Path, *colour: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), colour if len(colour) > 1 else colour[0]).save(path)


def test_an_npz_file_for_each_client(tmp_path: Path) -> None:
    # Given sites 2 and 10, and a file that a system left about
    save_npz(tmp_path / "site-10.npz", x=np.ones((3, 2), np.float32), y=[1, 1, 1])
    save_npz(tmp_path / "site-2.npz", x=np.zeros((1, 2), np.float32), y=[0])
    write(tmp_path / "._site-2.npz", "?")
    # When they are read
    data = read_npz(tmp_path)
    # Then clients are in people's order, and dtypes are those of the files
    assert data.clients == ("site-2", "site-10")
    assert data.y.tolist() == [0, 1, 1, 1]
    assert whose(data) == ["site-2", "site-10", "site-10", "site-10"]
    assert data.x.dtype == np.float32


def test_one_npz_file_with_names_of_clients_or_without(tmp_path: Path) -> None:
    arrays = {"images": np.arange(3), "labels": [0, 1, 0], "who": ["b", "a", "b"]}
    path = save_npz(tmp_path / "all.npz", **arrays)
    data = read_npz(path, x="images", y="labels", client="who")
    assert whose(data) == ["b", "a", "b"]
    assert data.clients == ("a", "b")
    assert read_npz(str(path), x="images", y="labels").owners is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: f / "none.npz", "there is no file or folder {}/none.npz"),
        (lambda f: f, "{} has no file that ends with .npz"),
        (lambda f: save_npz(f / "a.npz", X=[1], y=[1]), "{}/a.npz has no array 'x': it has X, y"),
        (lambda f: write(f / "a.npz", "text"), "{}/a.npz cannot be read as .npz"),
        (lambda f: save_npz(f / "a.npz", x=[1, 2], y=[1]), "{}/a.npz: 2 examples in x and 1 in y"),
        (lambda f: save_npz(f / "a.npz", x=[{}], y=[1]), "{}/a.npz cannot be read as .npz"),
    ],
)
def test_arrays_that_are_not_right(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(UserError, match=re.escape(says.format(tmp_path))):
        read_npz(path)


def test_a_folder_of_images_for_each_class(tmp_path: Path) -> None:
    # Given images of several kinds and sizes
    paint(tmp_path / "dogs" / "1.png", 0, 0, 255)
    paint(tmp_path / "cats" / "2.bmp", 255, 0, 0)
    paint(tmp_path / "cats" / "10.png", 7, mode="L")
    write(tmp_path / "cats" / "notes.txt", "mine")
    # When they are read
    data = read_images(tmp_path, size=(3, 5))
    # Then they have one size and three channels
    assert (data.x.shape, data.x.dtype, data.classes) == ((3, 3, 5, 3), np.uint8, ("cats", "dogs"))
    assert data.x[:, 0, 0].tolist() == [[255, 0, 0], [7, 7, 7], [0, 0, 255]]
    assert (data.y.tolist(), data.owners) == ([0, 0, 1], None)


def test_images_by_client_where_one_lacks_a_class(tmp_path: Path) -> None:
    paint(tmp_path / "anna" / "dogs" / "1.png", 9, mode="L")
    paint(tmp_path / "berta" / "cats" / "1.png", 8, mode="L")
    data = read_images(tmp_path, size=(4, 4), color_mode="grayscale", by_client=True)
    assert data.x.shape == (2, 4, 4, 1)
    assert (whose(data), data.y.tolist()) == (["anna", "berta"], [1, 0])


def test_images_that_are_not_right(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_images(tmp_path / "none", size=(4, 4))
    with pytest.raises(UserError, match="has no folders in it"):
        read_images(tmp_path, size=(4, 4))
    paint(tmp_path / "scans" / "1.png", 40_000, mode="I;16")
    with pytest.raises(UserError, match=r"scans/1.png has more than 8 bits per pixel"):
        read_images(tmp_path, size=(4, 4))
    whole = tmp_path / "scans" / "1.png"
    paint(whole, 1, 2, 3)
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"scans/1.png cannot be read as an image"):
        read_images(tmp_path, size=(4, 4))
    whole.unlink()
    with pytest.raises(UserError, match=r"scans has no file that ends with \.png, \.jpg"):
        read_images(tmp_path, size=(4, 4))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_with_a_column_of_clients_and_a_target_in_words(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "visits.csv", VISITS)
    read = read_csv
    if kind == "parquet":
        columns = [row.split(",") for row in VISITS.splitlines()]
        table = {name: [row[i] for row in columns[1:]] for i, name in enumerate(columns[0])}
        numbers = {name: [float(v) for v in table[name]] for name in ("age", "stay")}
        path, read = tmp_path / "visits.parquet", read_parquet
        parquet.write_table(pa.table({**table, **numbers}), path)
    data = read(path, target="pain", client="ward")
    assert data.x.tolist() == [[61, 3.5], [47, 1], [70, 2]]
    assert data.x.dtype == np.float32
    assert (data.y.tolist(), data.classes) == ([1, 0, 0], ("no", "yes"))
    assert whose(data) == ["north", "south", "north"]


def test_a_table_for_each_client_and_a_target_of_numbers(tmp_path: Path) -> None:
    # Given two shops, whose columns stand in another order, and a price that is whole in one
    write(tmp_path / "shop-1.csv", "area,rooms,price\n50,2,100\n70,3,150\n")
    write(tmp_path / "shop-2.tsv", "price\trooms\tarea\n99.5\t1\t30\n")
    data = read_csv(tmp_path, target="price")
    assert data.x.tolist() == [[50, 2], [70, 3], [30, 1]]
    assert (data.y.tolist(), data.y.dtype) == ([100, 150, 99.5], np.float32)
    assert whose(data) == ["shop-1", "shop-1", "shop-2"]


def test_several_targets_and_chosen_features(tmp_path: Path) -> None:
    path = write(tmp_path / "trees.csv", TREES.replace(",", ";"))
    data = read_csv(path, target=["fruit", "leaf"], features=["girth"], delimiter=";")
    assert (data.x.tolist(), data.y.tolist()) == ([[0.5], [1.5]], [[1, 0], [0, 1]])
    assert data.owners is None
    assert read_csv(path, target="fruit", delimiter=";").y.dtype == np.int64


def test_a_number_that_is_whole_until_late_in_a_long_file(tmp_path: Path) -> None:
    rows = ["1,0"] * 600_000 + ["1.5,1"]
    path = write(tmp_path / "long.csv", "\n".join(["a,b", *rows]))
    assert read_csv(path, target="b").x[-1].tolist() == [1.5]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (VISITS, {"target": "pian"}, "has no column 'pian'; did you mean 'pain'? it has age, ward"),
        (VISITS, {"target": "pain", "client": "house"}, "has no column 'house'; it has age"),
        (VISITS, {"target": "pain"}, "visits.csv, line 2, column 'ward': 'north' is no number"),
        (
            VISITS.replace("70", "old"),
            {"target": "pain", "client": "ward"},
            "visits.csv, line 4, column 'age': 'old' is no number",
        ),
        (
            VISITS.replace("47,", ","),
            {"target": "pain", "client": "ward"},
            "visits.csv, line 3, column 'age': there is nothing",
        ),
        (
            VISITS.replace("3.5", "inf"),
            {"target": "pain", "client": "ward"},
            "visits.csv, line 2, column 'stay': inf is no finite number",
        ),
        (VISITS.replace("47,", ""), {"target": "pain"}, "Row #3: Expected 4 columns, got 3"),
        ("age,pain\n", {"target": "pain"}, "visits.csv has no rows"),
        ("", {"target": "pain"}, "visits.csv cannot be read: Empty CSV file"),
        ("pain\n1\n", {"target": "pain"}, "has no column to learn from beside ['pain']"),
        ("a,a,b\n1,2,3\n", {"target": "b"}, "has several columns 'a'"),
    ],
)
def test_tables_that_are_not_right(
    tmp_path: Path, text: str, options: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "visits.csv", text)
    with pytest.raises(UserError, match=re.escape(says)) as raised:
        read_csv(path, **options)
    assert "\n" not in str(raised.value)


def test_tables_that_are_not_there_or_differ(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file or folder .*none.csv"):
        read_csv(tmp_path / "none.csv", target="a")
    with pytest.raises(UserError, match=r"there is no file or folder .*none.parquet"):
        read_parquet(tmp_path / "none.parquet", target="a")
    with pytest.raises(UserError, match=r"visits.csv cannot be read"):
        read_parquet(write(tmp_path / "visits.csv", VISITS), target="pain")
    write(tmp_path / "other.csv", VISITS.replace("yes", "1").replace("no\n", "0\n"))
    with pytest.raises(UserError, match="column 'pain' is text in one of"):
        read_csv(tmp_path, target="pain", client="ward")


def test_helpers_are_imported_without_tensorflow() -> None:
    code = "import sys; from fluffle import read_csv, read_images, read_npz; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert not {"tensorflow", "keras", "pyarrow", "PIL"} & set(done.stdout.split())


def test_sites_that_give_their_classes_mean_the_same_by_a_number(tmp_path: Path) -> None:
    # Given two sites whose tables have other words, and columns in another order
    a = write(tmp_path / "a.csv", "age,stay,pain\n1,2,mild\n3,4,none\n")
    b = write(tmp_path / "b.csv", "stay,age,pain\n2,1,severe\n4,3,none\n")
    # When both give the classes and the features
    given = {"classes": ["none", "mild", "severe"], "features": ["age", "stay"]}
    first, second = (read_csv(path, target="pain", **given) for path in (a, b))
    # Then a number is one class, and a column one feature, at both
    assert first.classes == second.classes == ("none", "mild", "severe")
    assert (first.y.tolist(), second.y.tolist()) == ([1, 0], [2, 0])
    assert first.x.tolist() == second.x.tolist()
    # And what is none of them is named
    with pytest.raises(UserError, match="has the class 'severe', which is none of none, mild"):
        read_csv(b, target="pain", classes=["none", "mild"])
    with pytest.raises(UserError, match="names one twice"):
        read_csv(b, target="pain", classes=["none", "none"])
    with pytest.raises(UserError, match="classes= are for"):
        read_csv(b, target="age", features=["stay"], classes=["none"])


def test_among_sites_a_task_says_what_a_number_means(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", "age,stay,pain\n1,2,mild\n3,4,none\n")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "0.png")
    with among_sites():
        # Given files that other sites have others of, columns and classes have to be given
        with pytest.raises(UserError, match=r"other columns, .* give features=.* in the task file"):
            read_csv(table, target="pain", classes=["none", "mild"])
        with pytest.raises(UserError, match=r"other classes, .* give classes="):
            read_csv(table, target="pain", features=["stay"])
        with pytest.raises(UserError, match=r"other classes, .* give classes="):
            read_images(tmp_path, size=(2, 2))
        # And a target in numbers has no names
        assert read_csv(table, target="age", features=["stay"]).y.tolist() == [1, 3]
    assert read_csv(table, target="pain").classes == ("mild", "none")


def test_classes_of_images_are_those_that_are_given(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "0.png")
    data = read_images(tmp_path, size=(2, 2), classes=["dog", "bird", "cat"])
    assert (data.y.tolist(), data.classes) == ([2, 0], ("dog", "bird", "cat"))
