"""Images in folders: one for each class, within one for each client or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.worker.files import files_in, folders_in
from fluffle.worker.tasks.client_data import ClientData, numbered

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_MODES = {"rgb": ("RGB", 3), "grayscale": ("L", 1)}


def read_images(
    folder: str | Path,
    *,
    size: tuple[int, int],
    color_mode: Literal["rgb", "grayscale"] = "rgb",
    by_client: bool = False,
    classes: Sequence[str] | None = None,
) -> ClientData:
    """Images from ``folder/CLASS/IMAGE``, or ``folder/CLIENT/CLASS/IMAGE`` where ``by_client``.

    size: (height, width) that every image is scaled to.
    x has shape (images, height, width, 3), or 1 for grayscale, 0 to 255 as uint8; y the class,
    int32, in the order of ``classes``, else of the folders' names; sites, which read
    folders of their own, have to give them. Raises: UserError.
    """
    if color_mode not in _MODES:
        raise UserError(f"color_mode={color_mode!r}: it is rgb or grayscale")
    clients = folders_in(Path(folder)) if by_client else [Path(folder)]
    by_class = [(c, found) for c, client in enumerate(clients) for found in folders_in(client)]
    files = [(file, c, found.name) for c, found in by_class for file in files_in(found, _ENDINGS)]
    x = np.empty((len(files), *size, _MODES[color_mode][1]), np.uint8)
    for i, (file, _, _) in enumerate(files):
        x[i] = _pixels(file, size, color_mode)
    # By name alone: a client may lack a class.
    y, known = numbered(np.array([label for _, _, label in files]), classes, str(folder))
    owners = np.array([c for _, c, _ in files], np.int32) if by_client else None
    names = tuple(client.name for client in clients) if by_client else ()
    return ClientData(x, y, owners, names, known)


def _pixels(file: Path, size: tuple[int, int], color_mode: str) -> NDArray[Any]:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise UserError("reading images needs Pillow: pip install 'fluffle[data]'") from None
    mode, channels = _MODES[color_mode]
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # would be cut off at 255
                raise UserError(
                    f"{file} has more than 8 bits per pixel: read it yourself, for ClientData.of"
                )
            scaled = image.convert(mode).resize(size[::-1], Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from None
    return np.asarray(scaled).reshape(*size, channels)
