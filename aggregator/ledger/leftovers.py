"""Leftovers: files in a run folder that its ledger does not know of. None is deleted here.

A ledger that was copied without its ``-wal`` file, or restored from an older copy than the files
beside it, has forgotten versions: to go on from it would silently replace them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fluffle.aggregator.ledger.archive import UPDATES
from fluffle.aggregator.ledger.weights import WEIGHTS
from fluffle.schemas import UserError

_MODEL = re.compile(r"^model-v(\d+)-e(\d+)-[0-9a-f]+\.msgpack$")
_DO = (
    "put ledger.sqlite back together with its ledger.sqlite-wal and the files that it was copied "
    "with, or choose another --out; nothing was changed"
)


def refuse_without_run(folder: Path) -> None:
    """Raises: UserError where files of a run lie in a folder whose ledger knows none."""
    models = (path for path, _, _ in _models(folder))
    left = next(iter([*models, *(folder / UPDATES).glob("updates-e*")]), None)
    if left is not None:
        raise UserError(
            f"{folder} holds files of a run ({left.relative_to(folder)}), but its ledger knows no "
            f"run: {_DO}"
        )


def refuse_newer(folder: Path, version: int, epoch: int) -> None:
    """Raises: UserError where there are weights that a ledger which ends here cannot have made.

    Of the next version there may be a file: a crash before its transaction leaves one.
    """
    for _, its_version, its_epoch in _models(folder):
        if its_version > version + 1 or its_epoch > epoch:
            raise UserError(
                f"the ledger in {folder} ends with version {version} of epoch {epoch}, but there "
                f"are weights of version {its_version} of epoch {its_epoch}: {_DO}"
            )


def newer_models(folder: Path, version: int, epoch: int) -> list[Path]:
    """Files of weights that a ledger which ends here does not know of."""
    return [path for path, v, e in _models(folder) if v > version or e > epoch]


def _models(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Each file of weights with its version and epoch."""
    for path in sorted((folder / WEIGHTS).glob("model-v*")):
        if found := _MODEL.match(path.name):
            yield path, int(found[1]), int(found[2])
