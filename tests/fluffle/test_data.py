"""``fluffle data``: what it lists, and what it shows of a partition."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from matplotlib.image import imread
from typer.testing import CliRunner

from fluffle.commands.app import app
from fluffle.heatmap import Shares, as_text, describe, draw
from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker import datasets
from fluffle.worker.datasets.synthetic import generate


def fluffle(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def shares(counts: list[list[int]]) -> Shares:
    table = np.array(counts)
    return Shares("a title", [str(row) for row in range(len(table))], table, table.sum(axis=0))


def test_every_data_set_is_listed_with_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUFFLE_DATA", str(tmp_path))
    said = fluffle("data", "list").output
    for name in datasets.names():
        assert datasets.recipe(name).summary in said
        assert f"not here yet: fluffle data fetch {name}\n" in said
    assert "synthetic(alpha, beta): generated" in said


def test_a_file_of_one_s_own_is_fetched_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUFFLE_DATA", str(tmp_path / "cache"))
    result = fluffle("data", "fetch", "cifar10", "--from", str(tmp_path / "nothing.tar.gz"))
    assert isinstance(result.exception, UserError)
    assert "nothing.tar.gz is not there" in str(result.exception)


def test_a_natural_partition_is_shown_with_all_of_its_owners() -> None:
    # When nothing is said but the name of data that has owners
    lines = fluffle("data", "show", "synthetic").output.splitlines()

    # Then there is a column for each, and the counts are the data's
    data = generate(1, 1, False, 30, 42)
    assert lines[0] == "synthetic, natural, 30 clients"
    for label, line in enumerate(lines[2:12]):
        assert line[:6] == f"    {label} "
        assert line.endswith(f" {np.sum(data.y_train == label):,}")
        for client, block in enumerate(line[6:36]):
            has = np.any((data.y_train == label) & (data.owner_train == client))
            assert (block != " ") == has
    sizes = np.bincount(np.asarray(data.owner_train))
    assert lines[12].startswith(f"examples of a client: {sizes.min():,} to {sizes.max():,}; label")


def test_what_is_set_is_what_is_shown() -> None:
    said = fluffle(
        *("data", "show", "synthetic", "--partition", "dirichlet", "--clients", "7"),
        *("--set", "partition.alpha=0.25", "--set", "task.synthetic_iid=true"),
    ).output
    title = "dirichlet (alpha 0.25 over all classes, client by client)"
    assert said.startswith(f"synthetic, {title}, 7 clients\n")
    total = len(generate(1, 1, True, 30, 42).y_train)
    assert f"examples of a client: {total // 7:,} to {total // 7 + 1:,}; labels" in said


def test_the_two_dirichlets_are_told_apart() -> None:
    said = fluffle(
        *("data", "show", "synthetic", "--partition", "dirichlet-by-class", "--clients", "7"),
        *("--set", "partition.alpha=5", "--set", "task.synthetic_iid=true"),
    ).output
    title = "dirichlet-by-class (alpha 5 for each client, class by class)"
    assert said.startswith(f"synthetic, {title}, 7 clients\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["minst"], "there is no data set 'minst': use one of cifar10"),
        (["synthetic", "--partition", "dirichlett"], "did you mean dirichlet?"),
        (["synthetic", "--set", "partition.alpa=1"], "did you mean partition.alpha?"),
        (["synthetic", "--clients", "900000"], "900000 devices of synthetic data have"),
        (["synthetic", "--out", "picture.docx"], "cannot draw into picture.docx"),
        (["synthetic", "--out", "/nowhere/picture.svg"], "cannot draw into /nowhere/picture.svg"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], says: str) -> None:
    result = fluffle("data", "show", *arguments)
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_partition_is_named_with_its_parameter() -> None:
    for table, expected in [
        (PartitionTable(), "contiguous"),
        (PartitionTable(kind="shards", shards_per_client=3), "shards (3 for each)"),
        (PartitionTable(kind="power-law"), "power-law (exponent 1)"),
        (PartitionTable(kind="similarity", similarity=0), "similarity (0 %)"),
    ]:
        assert describe(table) == expected


def test_many_clients_share_columns_and_rare_labels_a_line() -> None:
    # Given 30 labels and 150 clients; label k is k times as common, and client 0 has none of it
    counts = np.tile(np.arange(30)[:, None], (1, 150))
    counts[:, 0] = 0
    lines = as_text(shares(counts.tolist())).splitlines()

    # Then the 20 commonest are shown in their order, 2.5 clients to a column
    assert lines[1].endswith("each column is 2.5 clients; then all of the label")
    assert [line.split()[0] for line in lines[2:22]] == [str(k) for k in range(10, 30)]
    assert lines[-3].endswith(f" {149 * 29:,}")
    assert lines[-3].count("█") == 59  # all but the one that client 0 is in
    assert lines[-2] == "… and 10 labels that are rarer"


def test_counts_that_differ_by_orders_are_on_a_logarithmic_scale() -> None:
    text = as_text(shares([[10_000, 3, 3], [0, 3, 3]]))
    assert "on a logarithmic scale" in text
    assert text.splitlines()[2].startswith("    0 █")
    assert text.splitlines()[3].startswith("    1  ▂▂ 6")


def test_the_picture_is_dark_where_the_examples_are(tmp_path: Path) -> None:
    # Given that client 0 has all of label 0, and client 1 all of label 1
    draw(shares([[90, 0], [0, 90]]), tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")[:, :, :3].mean(axis=2)

    # Then of the map, whose quarters surround its centre, two are dark and two are white
    below = pixels[int(len(pixels) * 0.45) : int(len(pixels) * 0.8), : int(pixels.shape[1] * 0.8)]
    quarters = [half for row in np.array_split(below, 2) for half in np.array_split(row, 2, axis=1)]
    dark = [quarter.mean() < 0.6 for quarter in quarters]
    assert dark == [True, False, False, True]


def test_the_same_shares_give_the_same_drawing_and_it_is_whole(tmp_path: Path) -> None:
    for name, counts in [("a", [[5, 0], [1, 9]]), ("b", [[5, 0], [1, 9]]), ("c", [[5, 1], [1, 9]])]:
        draw(shares(counts), tmp_path / f"{name}.svg")
    a, b, c = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert a == b != c
    assert ElementTree.fromstring(a).tag.endswith("svg")
    draw(shares([[5, 0], [1, 9]]), tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
