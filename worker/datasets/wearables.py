"""Wearables: ten people's shoulder exercises, as a smartwatch felt them.

Burns et al. 2018 (arXiv 1802.01489): 140 recordings of 20 repetitions, 7 exercises, each side of
each person. The copy that the wheel of seglearn carries, under its BSD licence.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.worker.datasets.formats import read_pickled_arrays
from fluffle.worker.datasets.packages import pip_download
from fluffle.worker.datasets.recipe import Arrays, Expected, Progress, Recipe, Source, Unavailable

WHEEL = "seglearn==1.2.5"
#: Samples in an example: two seconds at 50 Hz.
WINDOW = 100

_FILE = "seglearn/data/watch_dataset.npy"


def from_wheel(folder: Path, progress: Progress) -> Arrays:
    """A Python wheel that carries the recordings."""
    return read_wheel(pip_download(WHEEL, folder, progress))


def read_wheel(path: Path) -> Arrays:
    """The recordings in a wheel of seglearn, as ``windows`` has them. Raises: Unavailable."""
    try:
        with zipfile.ZipFile(path) as wheel:
            file = io.BytesIO(wheel.read(_FILE))
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        stored = read_pickled_arrays(file.read()).item()
        return windows(stored["X"], stored["y"], stored["subject"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None


def windows(
    series: list[NDArray[Any]], exercises: NDArray[Any], people: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Windows of WINDOW samples, one after the other, none overlapping another.

    ``series`` has recordings of shape (samples, 6): acceleration in g, then turning in rad/s. The
    last fifth of each recording's windows is for the test; what is left at its end is dropped.
    """
    parts: dict[str, list[NDArray[Any]]] = {
        field: [] for field in ("x_train", "y_train", "x_test", "y_test", "owner_train")
    }
    owners = np.unique(people, return_inverse=True)[1]
    for samples, exercise, owner in zip(series, exercises, owners, strict=True):
        count = len(samples) // WINDOW
        x = samples[: count * WINDOW].astype(np.float32).reshape(count, WINDOW, -1)
        train = count * 4 // 5
        parts["x_train"].append(x[:train])
        parts["x_test"].append(x[train:])
        parts["y_train"].append(np.full(train, exercise, np.uint8))
        parts["y_test"].append(np.full(count - train, exercise, np.uint8))
        parts["owner_train"].append(np.full(train, owner, np.uint8))
    return {field: np.concatenate(arrays) for field, arrays in parts.items()}


WEARABLES = Recipe(
    name="wearables",
    summary="shoulder exercises of 10 people: 1,841 + 528 windows of 2 s, 6 axes, 7 classes, 6 MB",
    arrays={
        "x_train": Expected(
            (1841, 100, 6),
            "60bcc080b37ee12dbe30aa0ca1de20cb2f6f587750c23dd630efb83346d9f931",
            "float32",
        ),
        "y_train": Expected(
            (1841,), "2891bcbd1d8cb2fbc03a337a972baea5c05ccce53454a24bfc3d34a3a01dcd89"
        ),
        "x_test": Expected(
            (528, 100, 6),
            "8364ff617f535ba14ff9c4a3d0a4298cee9305b21b53c0fa13fcca7f61e219f5",
            "float32",
        ),
        "y_test": Expected(
            (528,), "7bfcef5dbe97f814e8dbd79595d1a26f4a2a16a44694761239822f4e3932f871"
        ),
        "owner_train": Expected(
            (1841,), "d910c3534b0ac849faf0744df02844f12234e69d553abb6075f3a9208324e32d"
        ),
    },
    sources=(Source(f"wheel {WHEEL}", from_wheel),),
    classes=("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"),
    opens=read_wheel,
)
