"""A disk that forgets: the folders that a loss of power could leave behind a sequence of events.

As POSIX has it, and no kinder: data that were not synced may be there or not, by sectors and in any
order; names that were made, changed or removed since their folder was synced may have been or not,
the earlier ones first. A file may have its name and not its data, or its data and no name.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.power.trace import Cut, Event, Made, Removed, Renamed, Synced, Told, Written

#: What a disk writes whole or not at all, in bytes.
SECTOR = 512


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    #: Since it was synced.
    pending: list[Written | Cut] = field(default_factory=list)


@dataclass
class Disk:
    """The run folder at ``root``, as it is after the events so far."""

    root: Path
    _files: dict[int, _File] = field(default_factory=dict)
    _durable: dict[Path, int | None] = field(default_factory=dict)
    #: Since their folder was synced.
    _names: list[Made | Renamed | Removed] = field(default_factory=list)
    acked: set[str] = field(default_factory=set)
    version: int = -1

    def apply(self, event: Event) -> None:
        """One more."""
        match event:
            case Told(acked, version):
                self.acked.update(acked)
                self.version = max(self.version, -1 if version is None else version)
            case Written(file) | Cut(file):
                self._files.setdefault(file, _File()).pending.append(event)
            case Made(_, file):
                if file is not None:
                    self._files.setdefault(file, _File())
                self._names.append(event)
            case Renamed() | Removed():
                self._names.append(event)
            case Synced(_, int(file)):
                one = self._files[file]
                for change in one.pending:
                    _change(one.durable, change)
                one.pending.clear()
            case Synced(path, None):
                these = [name for name in self._names if name.path.parent == path]
                self._names = [name for name in self._names if name.path.parent != path]
                _rename(self._durable, these)

    def left(self, chance: random.Random | None) -> dict[Path, bytes | None]:
        """What is there after a loss of power now: path below the root -> bytes, None for a folder.

        chance: what of the rest is there; None: nothing of it.
        """
        names = dict(self._durable)
        if chance is not None:
            kept = {folder: chance.random() for folder in {n.path.parent for n in self._names}}
            for folder, share in sorted(kept.items()):
                these = [name for name in self._names if name.path.parent == folder]
                _rename(names, these[: round(share * len(these))])
        return {
            path.relative_to(self.root): None if file is None else self._content(file, chance)
            for path, file in sorted(names.items())
            if path != self.root and path.parent in {self.root, *names}
        }

    def _content(self, file: int, chance: random.Random | None) -> bytes:
        content = bytearray(self._files[file].durable)
        for change in self._files[file].pending if chance is not None else ():
            assert chance is not None
            if isinstance(change, Cut):
                if chance.random() < 0.5:
                    _change(content, change)
                continue
            share = chance.choice((0.0, 0.5, 1.0))
            for start in range(0, len(change.data), SECTOR):
                if chance.random() < share:
                    piece = change.data[start : start + SECTOR]
                    _change(content, Written(file, change.offset + start, piece))
        return bytes(content)


def _change(content: bytearray, change: Written | Cut) -> None:
    if isinstance(change, Cut):
        del content[change.length :]
        content.extend(bytes(change.length - len(content)))
        return
    content.extend(bytes(max(0, change.offset + len(change.data) - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


def _rename(names: dict[Path, int | None], changes: Iterable[Made | Renamed | Removed]) -> None:
    for change in changes:
        match change:
            case Made(path, file):
                names[path] = file
            case Removed(path):
                names.pop(path, None)
            case Renamed(path, to):
                names[to] = names.pop(path)


def put(left: dict[Path, bytes | None], folder: Path) -> Path:
    """Make it a folder; the folder."""
    folder.mkdir(parents=True)
    for path, content in left.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    return folder
