"""Fashion-MNIST: 70,000 images of clothes, 28 x 28 (Xiao, Rasul, Vollgraf, arXiv 1708.07747).

A drop-in for MNIST that is harder to learn. MIT licence.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from fluffle.worker.datasets.formats import read_idx
from fluffle.worker.datasets.packages import apt_download, download, keras_folder
from fluffle.worker.datasets.recipe import Arrays, Expected, Progress, Recipe, Source, Unavailable

#: Where keras.datasets.fashion_mnist gets its four files.
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
#: Where that package puts them.
INSTALLED = Path("/usr/share/datasets/fashion-mnist")

_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


def from_keras_folder(folder: Path, progress: Progress) -> Arrays:
    """Where Keras has put it for somebody before."""
    return read_folder(keras_folder() / "fashion-mnist")


def from_installed(folder: Path, progress: Progress) -> Arrays:
    """Where the Debian package puts it."""
    return read_folder(INSTALLED)


def from_keras_site(folder: Path, progress: Progress) -> Arrays:
    """Where keras.datasets gets it; fails within seconds on a closed network."""
    for name in _FILES.values():
        download(KERAS_URL + name, folder / name, progress)
    return read_folder(folder)


def from_debian(folder: Path, progress: Progress) -> Arrays:
    """A Debian package that carries the four files; it is unpacked, not installed."""
    files = apt_download(DEBIAN_PACKAGE, folder, progress)
    return read_folder(files / INSTALLED.relative_to("/"))


def read_folder(folder: Path) -> Arrays:
    """The four gzipped idx files. Raises: Unavailable."""
    if not folder.is_dir():
        raise Unavailable(f"{folder} is not there")
    try:
        return {
            field: read_idx(gzip.decompress((folder / name).read_bytes()))
            for field, name in _FILES.items()
        }
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise Unavailable(f"{folder} cannot be read ({error})") from None


FASHION_MNIST = Recipe(
    name="fashion-mnist",
    summary="clothes: 60,000 + 10,000 images of 28 x 28, 10 classes, 55 MB",
    arrays={
        "x_train": Expected(
            (60_000, 28, 28),
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        ),
        "y_train": Expected(
            (60_000,),
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        ),
        "x_test": Expected(
            (10_000, 28, 28),
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        ),
        "y_test": Expected(
            (10_000,),
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    },
    sources=(
        Source("the Keras folder", from_keras_folder),
        Source(f"Debian package {DEBIAN_PACKAGE}, installed", from_installed),
        Source("keras.datasets", from_keras_site),
        Source(f"Debian package {DEBIAN_PACKAGE}", from_debian),
    ),
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    opens=read_folder,
)
