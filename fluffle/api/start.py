"""``fl.run`` and ``fl.load``."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluffle.api.runs import Run, code_in
from fluffle.api.sources import Resolved, Source, resolve
from fluffle.launch import new_folder
from fluffle.schemas import Tensors, UserError
from fluffle.schemas.user_code import forget_changed

if TYPE_CHECKING:
    from fluffle.tracking import Tracker

#: One at a time: a run has the process's settings of TensorFlow, and the folder of its code.
_ONE = threading.Lock()


class Stopped(KeyboardInterrupt):
    """A run was interrupted, and can be resumed: ``.run`` is what there is of it."""

    def __init__(self, run: Run) -> None:
        super().__init__(
            f"stopped at version {run.summary['versions']} of {run.experiment.experiment.versions};"
            f" the same call with out={str(run.folder)!r} goes on"
        )
        self.run = run


def run(
    source: Source = {},  # noqa: B006 never changed
    /,
    *,
    out: str | Path | None = None,
    clock: str = "real",
    broker: str = "embedded",
    workers: int = 0,
    slots: int = 0,
    initial: str | Path | Tensors | None = None,
    data: str | Path | None = None,
    code: str | Path | None = None,
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Run an experiment, or resume it, and give what came of it.

    source: an experiment file, a dict of its tables, or an ``Experiment``.
    out: the run folder; one that holds this experiment's run resumes it, or gives it as it is when
        it is finished. Default: ``runs/NAME-DATE-TIME``.
    clock, broker, workers, slots, initial, data: as ``fluffle run`` has them; ``initial`` may be
        arrays, as ``Run.weights`` gives them.
    code: the folder of files that the experiment names; default: the experiment file's.
    progress: whether to show the run while it goes on, in a terminal or a notebook.
    overrides: settings by their key: ``quorum=5``, ``**{"task.name": "mnist-cnn"}``; ``None`` takes
        one out. ``task``, ``strategy``, ``algorithm`` and ``partition`` take a class as well.

    Raises: UserError, in one line, for what a person can mend; Stopped (a KeyboardInterrupt) after
    Ctrl-C, with the run in a state from which the same call goes on.
    """
    resolved = resolve(source, overrides, None if code is None else Path(code))
    name = resolved.experiment.experiment.name
    folder = Path(out) if out else new_folder(name)
    return run_resolved(
        resolved,
        folder,
        clock=clock,
        url=broker,
        workers=workers,
        slots=slots,
        initial=Path(initial) if isinstance(initial, str | Path) else initial,
        data=None if data is None else Path(data),
        trackers=trackers,
        progress=progress,
    )


def run_resolved(
    resolved: Resolved, folder: Path, *, url: str = "embedded", workers: int = 0,
    progress: bool = True, **how: Any,
) -> Run:  # fmt: skip
    """Run what is resolved; ``how`` is for ``launch``. Raises: UserError, Stopped."""
    from fluffle import logs
    from fluffle.display import Display
    from fluffle.launch import launch

    if (workers or url != "embedded") and resolved.is_here:
        raise UserError(
            "this experiment has a class that this process defines, and a worker in another "
            "process cannot load it, for code does not travel: put the class into a file, "
            "my_task.py, and name it 'my_task.py:MyTask'; or leave broker and workers out"
        )
    if not _ONE.acquire(blocking=False):
        raise UserError("a run goes on in this process already: wait for it, or start a process")
    try:
        forget_changed()
        with ExitStack() as stack:
            stack.enter_context(code_in(resolved.code))
            if progress:
                stack.enter_context(logs.installed("info", "text"))
            name = resolved.experiment.experiment.name
            display = stack.enter_context(Display(name, quiet=not progress))
            summary = launch(
                *(resolved.experiment, folder, display),
                **{"code": resolved.code, "url": url, "workers": workers, **how},
            )
    finally:
        _ONE.release()
    made = Run(folder, code=resolved.code)
    if summary["status"] == "stopped":
        raise Stopped(made)
    if summary["status"] == "failed":
        raise UserError(f"the run failed: {summary['detail']}")
    return made


def load(folder: str | Path, *, code: str | Path | None = None) -> Run:
    """The run in this folder.

    code: the folder of its task's file, where its model shall be built. Raises: UserError.
    """
    return Run(folder, code=code or os.environ.get("FLUFFLE_TASK"))
