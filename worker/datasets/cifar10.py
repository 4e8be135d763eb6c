"""CIFAR-10: 60,000 colour images of 32 x 32 pixels (Krizhevsky 2009).

No package index carries it: it comes from Keras's folder or site, or from a file that somebody has
(``fluffle data fetch cifar10 --from cifar-10-python.tar.gz``). Its author states no licence.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np

from fluffle.worker.datasets.formats import read_pickled_arrays
from fluffle.worker.datasets.packages import download, keras_folder
from fluffle.worker.datasets.recipe import Arrays, Expected, Progress, Recipe, Source, Unavailable

#: What keras.datasets.cifar10 downloads.
KERAS_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
#: The MD5 sums of the batches, as published; whatever brought them, these are checked.
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_INSIDE = "cifar-10-batches-py"


def from_keras_folder(folder: Path, progress: Progress) -> Arrays:
    """Where Keras has put it for somebody before; Keras 3 nests the folders."""
    outer = keras_folder() / f"{_INSIDE}-target"
    return read_path(outer if outer.is_dir() else keras_folder() / _INSIDE)


def from_keras_site(folder: Path, progress: Progress) -> Arrays:
    """Where keras.datasets gets it; fails within seconds on a closed network."""
    return read_path(download(KERAS_URL, folder / "cifar-10-python.tar.gz", progress))


def read_path(path: Path) -> Arrays:
    """The archive, or a folder with the batches, directly or one level below.

    Raises: Unavailable.
    """
    if not path.exists():
        raise Unavailable(f"{path} is not there")
    try:
        if path.is_dir():
            inner = path / _INSIDE
            batches = inner if inner.is_dir() else path
            return _arrays({name: (batches / name).read_bytes() for name in BATCHES})
        with tarfile.open(path) as archive:
            files = {name: archive.extractfile(f"{_INSIDE}/{name}") for name in BATCHES}
            return _arrays({name: file.read() if file else b"" for name, file in files.items()})
    except (OSError, KeyError, EOFError, zlib.error, tarfile.TarError) as error:
        raise Unavailable(f"{path} cannot be read ({error})") from None


def _arrays(batches: dict[str, bytes]) -> Arrays:
    for name, data in batches.items():
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != BATCHES[name]:
            raise Unavailable(f"{name} has another MD5")
    try:
        read = [read_pickled_arrays(data, "bytes") for data in batches.values()]
        # Each image is its red, its green and its blue plane.
        x = [b[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for b in read]
        y = [np.array(b[b"labels"], np.uint8) for b in read]
    except (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unavailable(f"the batches cannot be read ({error})") from None
    return {
        "x_train": np.ascontiguousarray(np.concatenate(x[:-1])),
        "y_train": np.concatenate(y[:-1]),
        "x_test": np.ascontiguousarray(x[-1]),
        "y_test": y[-1],
    }


CIFAR10 = Recipe(
    name="cifar10",
    summary="colour images: 50,000 + 10,000 of 32 x 32, 10 classes, 184 MB",
    arrays={
        "x_train": Expected((50_000, 32, 32, 3), None),
        "y_train": Expected((50_000,), None),
        "x_test": Expected((10_000, 32, 32, 3), None),
        "y_test": Expected((10_000,), None),
    },
    sources=(
        Source("the Keras folder", from_keras_folder),
        Source("keras.datasets", from_keras_site),
    ),
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    opens=read_path,
)
