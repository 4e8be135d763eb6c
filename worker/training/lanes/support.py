"""What the JAX engine does not do, refused before a run; and which models' batches it may pad."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from fluffle.schemas import Plan, UserError
from fluffle.worker.tasks.arrays import ArrayTask
from fluffle.worker.tasks.task import StreamedTask, Task
from fluffle.worker.training.local_state import recurrent_states
from fluffle.worker.training.variables import has_own, layers_of, tables_of

_ENGINE = "training.engine = 'jax'"
_INSTEAD = "leave the engine out (tensorflow)"


def check_plan(plan: Plan) -> None:
    """Raises: UserError for a plan that asks for what only TensorFlow's engine does."""
    table = plan.training
    algorithm = table.algorithm if table.algorithm != "fedprox" else None
    for what, asked in (
        (f"training.algorithm = {algorithm!r}", algorithm),
        (f"the strategy's {plan.asks}", plan.asks),
        ("training.optimizer_state = 'keep'", table.optimizer_state == "keep"),
        ("use_ema", (table.optimizer_parameters or {}).get("use_ema")),
        ("evaluation.by_client with weights.keep", plan.evaluation.by_client and _keeps(plan)),
    ):
        if asked:
            raise UserError(f"{_ENGINE} does without {what}: {_INSTEAD}")


def _keeps(plan: Plan) -> bool:
    return plan.weights is not None and plan.weights.keep is not None


def check_task(task: Task) -> None:
    """Raises: UserError for a task that is no Keras model with its examples in memory."""
    if isinstance(task, ArrayTask | StreamedTask):
        kind = (
            "an ArrayTask trains by itself" if isinstance(task, ArrayTask) else "it takes no stream"
        )
        raise UserError(f"{_ENGINE}: {kind}: {_INSTEAD}")


def check_supported(model: keras.Model) -> None:
    """Raises: UserError for a model that this engine would train otherwise than it says."""
    own = next((m for m in ("train_step", "test_step") if has_own(model, m)), None)
    if own is not None:
        raise UserError(f"{_ENGINE} does without a model's own {own}: {_INSTEAD}")
    if model.dtype_policy.name == "mixed_float16":
        raise UserError(f"{_ENGINE} does without loss scaling (mixed_float16): {_INSTEAD}")
    for v in model.weights:
        if v.dtype in ("float64", "int64", "uint64"):
            raise UserError(
                f"{_ENGINE}: JAX has no {v.dtype} here, and {v.path} is such: {_INSTEAD}"
            )
    if tables_of(model) is not None:
        raise UserError(f"{_ENGINE} does without look-up layers: {_INSTEAD}")


def decides_alone(model: keras.Model) -> bool:
    """Whether each example by itself decides its part of the loss, so that a batch may be padded.

    Not where a batch changes or is compared with something: batch statistics, states, losses that
    layers add, masks, or a loss that is no mean over the batch. Keras weighs the losses of several
    outputs by the size of batches, as it sees them.
    """
    if model.non_trainable_weights or recurrent_states(model):
        return False
    if len(getattr(model, "outputs", None) or (0,)) > 1:
        return False
    for layer in layers_of(model):
        masks = getattr(layer, "mask_zero", False) or isinstance(layer, keras.layers.Masking)
        if masks or getattr(layer, "activity_regularizer", None) is not None:
            return False
        code = getattr(inspect.unwrap(layer.call), "__code__", None)
        if code is not None and "add_loss" in code.co_names:
            return False
    return all(_is_mean(loss) for loss in keras.tree.flatten(model.loss))


def _is_mean(loss: Any) -> bool:
    return (
        loss is None
        or not isinstance(loss, keras.losses.Loss)
        or (loss.reduction == "sum_over_batch_size")
    )
