"""Deals the wearables data set out to folders, as if each person were a site.

``python experiments/make_sites.py FOLDER`` writes ``FOLDER/person-0`` to ``person-4`` and
``FOLDER/evaluator``. Of each person's recordings the last fifth is what its site holds out.
"""

import sys
from pathlib import Path

import numpy as np

from fluffle.worker.datasets import load

PEOPLE = 5


def main(folder: Path) -> None:
    data = load("wearables")
    for person in range(PEOPLE):
        own = np.flatnonzero(data.owner_train == person)
        held_out = own[4::5]
        write(folder / f"person-{person}", data, np.setdiff1d(own, held_out), held_out)
    everything = folder / "evaluator"
    everything.mkdir(parents=True, exist_ok=True)
    np.savez(everything / "wearables.npz", x_test=data.x_test, y_test=data.y_test)


def write(folder, data, train, held_out):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "wearables.npz",
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_train[held_out],
        y_test=data.y_train[held_out],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
