"""Weights of a Keras file for a task's model, by the paths of both.

What fits is taken: the same path, the same shape, and a dtype that holds it. Where the head is
another, and wherever else something does not fit, the task's own weights stay, and each is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from fluffle.schemas import Plan, Tensors, UserError
from fluffle.schemas.errors import describe
from fluffle.schemas.tensors import Array, dtype_name, is_float
from fluffle.worker.tasks.arrays import ArrayTask
from fluffle.worker.tasks.registry import load_task, trying
from fluffle.worker.training.building import seeded
from fluffle.worker.training.travel import Group, Travel, groups_of, paths_of
from fluffle.worker.training.variables import parameters_of, payload, tables_of, values_of


class Transferred(NamedTuple):
    """Version 0 of a run, from a file."""

    #: What travels, as the task's model names it.
    tensors: Tensors
    #: A line for each weight of the task, or of the file, that was not taken.
    said: list[str]


def transfer(plan: Plan, path: Path) -> Transferred:
    """The task's weights of version 0, with those of the Keras file wherever they fit.

    Raises: UserError where the file cannot be read, or nothing that is trained fits.
    """
    task = load_task(plan)
    if isinstance(task, ArrayTask):
        raise UserError(f"{path} is a Keras model, and an ArrayTask has none: give arrays (.npz)")
    with seeded(plan.seed):
        model = trying(task, task.model)
    theirs = _read(path)
    found = {key: np.asarray(v.value) for v, key in _weights_of(theirs)}
    groups = {} if plan.weights is None else groups_of(plan.weights, model)
    travel = None if plan.weights is None else Travel(plan.weights, model)
    paths, whole = paths_of(model), payload(model)
    weights = [*parameters_of(model), *values_of(model)]
    said, taken = [], 0
    for name, v in zip(list(whole), weights, strict=False):
        key = paths[id(v)]
        if why := _misfit(key, whole[name], found, groups.get(id(v), "send")):
            said.append(f"{key}: {why}: kept the task's")
            continue
        whole[name] = found[key].astype(whole[name].dtype)
        taken += name.startswith("trainable/")
    left_out = [key for key in found if key not in paths.values()]
    said += [f"{k}: {_shape(found[k])} in the file, not in the task: left out" for k in left_out]
    if not taken:
        raise UserError(f"nothing in {path} fits the model of {plan.task.name}: {said[0]}")
    if (ours := tables_of(model)) is not None and not np.array_equal(ours, _tables(theirs)):
        said.append("look-up layers: other entries in the file: kept the task's")
    return Transferred(whole if travel is None else travel.outward(whole), said)


def _read(path: Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever Keras raises on what is no model, or one of other code
        raise UserError(f"cannot read a Keras model from {path}: {describe(error, 300)}") from error


def _weights_of(model: keras.Model) -> list[tuple[keras.Variable, str]]:
    paths = paths_of(model)
    return [(v, paths[id(v)]) for v in model.weights]


def _tables(model: keras.Model) -> Array:
    found = tables_of(model)
    return np.zeros(0, np.uint8) if found is None else found


def _misfit(key: str, ours: Array, found: Mapping[str, Array], group: Group) -> str:
    """Why a weight of the task's is not taken from the file; empty if it is."""
    if group == "freeze":
        return "frozen, which every worker builds from the task"
    if group == "keep":
        return "it stays with the client, who begins with the task's"
    if key not in found:
        return "not in the file"
    theirs = found[key]
    if theirs.shape != ours.shape:
        return f"{_shape(theirs)} in the file, {_shape(ours)} in the task"
    if theirs.dtype != ours.dtype and not (is_float(theirs) and is_float(ours)):
        return f"{dtype_name(theirs)} in the file, {dtype_name(ours)} in the task"
    return ""


def _shape(array: Array) -> str:
    return str(tuple(array.shape))
