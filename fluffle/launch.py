"""The launch of a run: everything between an experiment and its first turn, for whoever asks.

What cannot run is refused here, in one line, before a folder is made or anything is trained.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluffle.schemas import Experiment, Tensors, UserError, transforms
from fluffle.schemas.extensions import FOLDER

if TYPE_CHECKING:
    from fluffle.display import Display
    from fluffle.tracking import Tracker
    from fluffle.worker.training.sharing import Trainers

CLOCKS = ("real", "virtual")


def launch(
    experiment: Experiment,
    folder: Path,
    display: Display,
    *,
    code: Path,
    clock: str = "real",
    url: str = "embedded",
    federation: str = "fluffle",
    connect_timeout_s: float = 30.0,
    workers: int = 0,
    slots: int = 0,
    initial: Path | Tensors | None = None,
    data: Path | None = None,
    trackers: Sequence[Tracker] = (),
    save: bool = True,
    shared: Trainers | None = None,
) -> dict[str, Any]:
    """Run or resume an experiment in ``folder``; its summary. Raises: UserError.

    code: the folder of files that the experiment names. slots: 0 for what the cores allow.
    initial: a file, or the tensors themselves. data: of a task from a file.
    save: whether the end leaves ``model.keras`` and ``best.keras``. shared: trainers for runs under
    the virtual clock, one after the other.
    """
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.initial import fitted, initial_weights
    from fluffle.running import check_folder, run_experiment, run_virtual
    from fluffle.worker.tasks.registry import prepare
    from fluffle.worker.training.algorithms.registry import check as check_algorithm
    from fluffle.worker.training.runtime import configure
    from fluffle.worker.training.trial import check

    check_placement(experiment, url, clock, workers)
    make_strategy(experiment, code)  # before anything starts: it may not load
    check_folder(folder)
    slots = slots or max(1, (os.cpu_count() or 1) // max(1, workers))
    if clock == "real":  # a slot waits for others of its step
        slots = max(slots, experiment.training.lanes or 1)
    configure(slots, experiment.training.engine)  # before code that may touch it
    use_code(code, experiment)
    use_data(data)
    prepare(experiment.task.name, display.fetching)
    check(experiment)
    check_algorithm(experiment.training)
    weights: Tensors | None = None
    if initial is not None:
        given = initial if isinstance(initial, Mapping) else initial_weights(initial, experiment)
        weights = fitted(given, experiment)
    if clock == "virtual":
        return run_virtual(
            experiment,
            folder,
            display,
            slots=slots,
            code=code,
            initial=weights,
            trackers=trackers,
            save=save,
            shared=shared,
        )
    return run_experiment(
        experiment,
        folder,
        display,
        url=url,
        federation=federation,
        connect_timeout_s=connect_timeout_s,
        workers=workers,
        slots=slots,
        code=code,
        initial=weights,
        trackers=trackers,
        save=save,
    )


def new_folder(name: str) -> Path:
    """A folder for a new run: ``runs/NAME-DATE-TIME``, with a number where that is there."""
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(path for path in chain([first], others) if not path.exists())


def check_placement(experiment: Experiment, url: str, clock: str, workers: int) -> None:
    """Raises: UserError where an experiment cannot run there, or whom it needs cannot reach it."""
    if clock not in CLOCKS:
        raise UserError(f"--clock {clock}: it is real or virtual")
    if clock == "virtual" and (url != "embedded" or workers):
        raise UserError("--clock virtual runs in this process: leave out --broker and --workers")
    if experiment.residents and (clock == "virtual" or url in ("embedded", "local")):
        raise UserError(
            "participation.residents are sites with processes of their own, and reach a run over a "
            "RabbitMQ that they share with it: give --broker amqp://…, with the real clock"
        )
    if experiment.identity == "broker" and url == "embedded":
        raise UserError(
            "participation.identity = 'broker' needs a broker that knows users: give --broker "
            "amqp://…, or leave it out"
        )


def use_code(folder: Path, experiment: Experiment) -> None:
    """What an experiment names is looked for in this folder, here and in worker processes; its
    ``[[update]]`` steps are loaded. Raises: UserError where one cannot be.
    """
    os.environ[FOLDER] = str(folder.resolve())
    transforms.check(experiment.update or ())


def use_data(data: Path | None) -> None:
    """The data of a task from a file are there, if not beside it. Raises: UserError."""
    from fluffle.worker.tasks import custom
    from fluffle.worker.tasks.registry import use

    if data is not None:
        use(None, data)
        os.environ[custom.DATA] = str(data.resolve())
