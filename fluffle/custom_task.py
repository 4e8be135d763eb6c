"""Before a command starts: where a task of one's own is, and whether a site can be one."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from fluffle.schemas import Experiment, UserError


def use_task(task: str | None, data: Path | None, slots: int) -> None:
    """Load the file that ``--task`` names, and remember ``--data``. Raises: UserError."""
    if task is None and data is None:
        return
    from fluffle.worker.tasks.registry import use
    from fluffle.worker.training.runtime import configure

    if task is not None:
        configure(slots)  # before the user's code, which may touch TensorFlow
    use(task, data)


def use_folder_of(file: Path, experiment: Experiment, slots: int, data: Path | None) -> None:
    """The task of an experiment is looked for beside its file, here and in worker processes.

    data: where its data are, if not there. Raises: UserError.
    """
    from fluffle.worker.tasks import custom
    from fluffle.worker.tasks.registry import use
    from fluffle.worker.training.runtime import configure

    os.environ[custom.FOLDER] = str(file.resolve().parent)
    if data is not None:
        use(None, data)
        os.environ[custom.DATA] = str(data.resolve())
    if custom.is_custom(experiment.task.name):
        configure(slots)


def check_site(client: str, task: str | None, name: str, slots: int) -> None:
    """Raises: UserError where this cannot be a resident client."""
    from fluffle.worker.tasks import custom

    if name or slots > 1:
        raise UserError("--client-id is one client: leave out --name and --slots")
    try:
        Experiment.model_validate({"participation": {"residents": [client]}})
    except ValidationError:
        raise UserError(
            f"--client-id {client}: use letters, digits, - and _, 64 at most and not digits alone"
        ) from None
    if task is None and custom.FOLDER not in os.environ:
        raise UserError(
            "a site trains with a task file of its own: give --task FILE.py:Class, or set "
            f"{custom.FOLDER} to the folder that has the file which the experiment names"
        )


def check_reachable(experiment: Experiment, broker: str, clock: str) -> None:
    """Raises: UserError where resident clients could never reach the run."""
    if experiment.residents and (clock == "virtual" or broker in ("embedded", "local")):
        raise UserError(
            "participation.residents are sites with processes of their own, and reach a run over a "
            "RabbitMQ that they share with it: give --broker amqp://…, with the real clock"
        )
    if experiment.identity == "broker" and broker == "embedded":
        raise UserError(
            "participation.identity = 'broker' needs a broker that knows users: give --broker "
            "amqp://…, or leave it out"
        )
