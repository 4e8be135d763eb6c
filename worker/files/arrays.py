"""``.npz`` files: one for each client, or one with an array that says whose an example is."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.worker.files import files_in
from fluffle.worker.tasks.client_data import ClientData


def read_npz(
    path: str | Path, *, x: str = "x", y: str = "y", client: str | None = None
) -> ClientData:
    """Examples from a ``.npz`` file, or from a folder of them, one for each client.

    x, y: what the arrays of inputs and targets are called in the files.
    client: in a file, the array that has the name of each example's client.
    Raises: UserError.
    """
    path = Path(path)
    if not path.is_dir():
        arrays = _load(path, (x, y) if client is None else (x, y, client))
        return ClientData.by_name(arrays[x], arrays[y], arrays.get(client or ""), str(path))
    if client is not None:
        raise UserError(f"{path} is a folder, with a client in each file: leave out client=")
    loaded = {file.stem: _load(file, (x, y)) for file in files_in(path, (".npz",))}
    return ClientData.of({name: (arrays[x], arrays[y]) for name, arrays in loaded.items()})


def _load(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path) as arrays:
            if missing := [name for name in names if name not in arrays]:
                raise UserError(
                    f"{path} has no array {missing[0]!r}: it has {', '.join(arrays)}; say which "
                    "to use, as x='images', y='labels'"
                )
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"there is no file or folder {path}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from None
