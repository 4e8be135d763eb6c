"""Weights of version 0 from a file: ``--initial``.

A weights file of a run's folder and a ``.npz`` that ``fluffle export`` wrote are taken as they
are. A Keras model is read by a process of its own, since an aggregator has no Keras::

    python -m fluffle.initial MODEL.keras RESULT < experiment.json
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fluffle.aggregator.coordinator.admission import check_initial
from fluffle.schemas import Experiment, Plan, Tensors, UserError
from fluffle.schemas.codec import pack, unpack
from fluffle.schemas.tensors import DTYPES, dtype_name, is_float, spec

_log = logging.getLogger(__name__)

#: What a file may have beside a model: of the strategy, or of one client.
_OTHERS = ("server/", "personal/", "own/")


def initial_weights(path: Path, experiment: Experiment) -> Tensors:
    """The weights of version 0. What of a Keras model does not fit the task is said.

    Raises: UserError where the file cannot be read, or nothing of it fits.
    """
    if not path.is_file():
        raise UserError(f"--initial: there is no file {path}")
    if path.suffix == ".keras":
        return _from_keras(path, experiment)
    if path.suffix == ".h5":
        raise UserError(
            f"--initial {path}: such a file does not name its layers; save the whole model: "
            "model.save('model.keras')"
        )
    try:
        found = _arrays(path) if path.suffix == ".npz" else unpack(path.read_bytes())[1] or {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read weights from {path}: {error}") from error
    weights = {k.removeprefix("model/"): a for k, a in found.items() if not k.startswith(_OTHERS)}
    check_initial(weights)
    return weights


def fitted(weights: Tensors, experiment: Experiment) -> Tensors:
    """These weights, as the experiment's task has them; for a process that can build its model.

    Raises: UserError where they do not fit it.
    """
    from fluffle.worker.training.per_plan import make_trainer

    ours = spec(make_trainer(Plan.of(experiment, "delta")).initial())
    as_ours = {}
    for name in [*ours, *weights]:
        array, (dtype, shape) = weights.get(name), ours.get(name, ("", ()))
        if array is None or array.shape != shape or not _holds(dtype, array):
            there = "missing" if array is None else f"{dtype_name(array)}{list(array.shape)}"
            here = f"{dtype}{list(shape)}" if name in ours else "nothing"
            raise UserError(
                f"--initial: these weights do not fit the model of {experiment.task.name}: {name} "
                f"is {there} in the file, and {here} in the task"
            )
        as_ours[name] = array.astype(DTYPES[dtype], copy=False)
    return as_ours


def _holds(dtype: str, array: Any) -> bool:
    """Whether an array is of this dtype, or was written as float32 in its place (bfloat16)."""
    return dtype_name(array) == dtype or ("float" in dtype and is_float(array))


def _arrays(path: Path) -> Tensors:
    with np.load(path) as arrays:
        return dict(arrays)


def _from_keras(path: Path, experiment: Experiment) -> Tensors:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"--initial {path}: reading a Keras model needs tensorflow, which is not installed: "
            "pip install 'fluffle[cpu]', or give a weights file of a run, or a .npz that fluffle "
            "export wrote"
        )
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "initial"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fluffle.initial", path, result],
            input=experiment.model_dump_json(),
            capture_output=True,
            text=True,
            errors="replace",
        )
        if not result.exists():
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise UserError(f"--initial {path}: reading it failed: {''.join(last)}")
        head, tensors = unpack(result.read_bytes())
    if "error" in head:
        raise UserError(f"--initial: {head['error']}")
    for line in head["said"]:
        _log.warning("--initial %s: %s", path.name, line)
    return tensors or {}


def _answer(path: Path, experiment: Experiment) -> tuple[dict[str, Any], Tensors]:
    """What the process that has Keras finds."""
    from fluffle.worker.tasks import custom
    from fluffle.worker.tasks.registry import use
    from fluffle.worker.training.runtime import configure

    try:
        configure(1, experiment.training.engine)
        if data := os.environ.get(custom.DATA):
            use(None, Path(data))
        from fluffle.worker.training.transfer import transfer

        found = transfer(Plan.of(experiment, "delta"), path)
    except UserError as error:
        return {"error": str(error)}, {}
    return {"said": found.said}, found.tensors


if __name__ == "__main__":
    answer = pack(*_answer(Path(sys.argv[1]), Experiment.stored(sys.stdin.read())))
    Path(sys.argv[2]).write_bytes(answer)
