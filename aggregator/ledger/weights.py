"""Tensors in files: written whole or not at all, and durable before anybody hears of them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from fluffle.aggregator.ledger.disk import cannot_delete, cannot_write, make_folder, sync_folder
from fluffle.schemas import Tensors, UserError
from fluffle.schemas.codec import pack, unpack

#: The folder of these files in a run folder.
WEIGHTS = "weights"
SUFFIX = ".msgpack"
_EPOCH = re.compile(r"-e(\d+)-")


class Store:
    """The files of one run folder. Names carry version, epoch and hash, so none is overwritten."""

    def __init__(self, folder: Path, durable: bool = True) -> None:
        self._durable = durable
        self.folder = folder / WEIGHTS

    def write(self, kind: str, version: int, epoch: int, tensors: Tensors) -> str:
        """Write and fsync; the file's name. Raises: UserError when the disk is full."""
        make_folder(self.folder)
        body = pack({"kind": kind, "version": version}, tensors)
        digest = hashlib.sha256(body).hexdigest()
        name = f"{kind}-v{version:06d}-e{epoch}-{digest[:16]}{SUFFIX}"
        target = self.folder / name
        temporary = target.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(body)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(target)
            if self._durable:
                sync_folder(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise cannot_write(self.folder, error) from error
        return name

    def read(self, name: str) -> Tensors:
        """Writable copies of a file's tensors. Raises: UserError where its bytes have changed."""
        try:
            body = (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {self.folder / name}: {error.strerror}") from error
        if not self.intact(name, body):
            raise UserError(f"{self.folder / name} is damaged: its hash is not the one in its name")
        tensors = unpack(body)[1] or {}
        return {key: array.copy() for key, array in tensors.items()}

    def intact(self, name: str, body: bytes | None = None) -> bool:
        """Whether the file is there and its bytes have the hash in its name."""
        path = self.folder / name
        if body is None:
            if not path.exists():
                return False
            body = path.read_bytes()
        return name.removesuffix(SUFFIX).endswith(hashlib.sha256(body).hexdigest()[:16])

    def keep(self, names: set[str], epoch: int) -> None:
        """Delete every other file of this epoch and those before it. Raises: UserError.

        A later leader's files are not ours to judge: one that it has just written is in no row yet,
        and a leader that was stopped after its last commit comes here when it wakes up.
        """
        for path in self.folder.iterdir():
            its = _EPOCH.search(path.name)
            if path.name not in names and its is not None and int(its[1]) <= epoch:
                self.discard(path.name)

    def discard(self, name: str) -> None:
        """Delete a file that no row names any more. Raises: UserError where that fails."""
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_delete(path, error) from error
