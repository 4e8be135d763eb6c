"""Transforms of an update: applied before it leaves its client, undone at the server.

Both directions stand side by side, since they are one format: the client applies the steps of the
plan in order, the server undoes them in reverse. Byte counts are those of what travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fluffle.schemas.steps import Cast, Clip, Custom, Noise, Quantise, Sparsify, Step
from fluffle.schemas.tensors import Spec, Tensors, spec
from fluffle.schemas.transforms.base import Draws, Transform
from fluffle.schemas.transforms.clip import ClipTransform, NoiseTransform
from fluffle.schemas.transforms.custom import CustomTransform
from fluffle.schemas.transforms.rounding import CastTransform, QuantiseTransform
from fluffle.schemas.transforms.sparse import SparseTransform

__all__ = ["Draws", "apply", "check", "restore", "sent_spec"]


def check(steps: Sequence[Step]) -> None:
    """Raises: UserError for a step of one's own that cannot be loaded on this machine."""
    for step in steps:
        _transform(step)


def apply(
    steps: Sequence[Step], tensors: Tensors, draws: Draws, memory: Tensors
) -> tuple[Tensors, Tensors]:
    """What leaves of this delta, and what the client keeps for its next (empty: nothing).

    memory: what it kept the last time; see ``fluffle.schemas.transforms.sparse``.
    """
    kept: Tensors = {}
    for transform in map(_transform, steps):
        if isinstance(transform, SparseTransform):
            tensors, kept = transform.apply_with_memory(tensors, draws, memory)
        else:
            tensors = transform.apply(tensors, draws)
    return tensors, kept


def restore(steps: Sequence[Step], tensors: Tensors, model: Spec) -> Tensors:
    """The delta that was sent, of the model's spec. Raises: ValueError where it does not fit."""
    transforms = [_transform(step) for step in steps]
    specs = list(accumulate(transforms, lambda before, t: t.spec(before), initial=model))
    if spec(tensors) != specs[-1]:
        raise ValueError("names, dtypes or shapes are not those that the steps make")
    for transform, before in zip(reversed(transforms), reversed(specs[:-1]), strict=True):
        tensors = transform.restore(tensors, before)
    return tensors


def sent_spec(steps: Sequence[Step], model: Spec) -> Spec:
    """Names, dtypes and shapes of what leaves, for a delta of this spec."""
    for step in steps:
        model = _transform(step).spec(model)
    return model


def _transform(step: Step) -> Transform:
    match step:
        case Clip():
            return ClipTransform(step.norm)
        case Noise():
            return NoiseTransform(step.std)
        case Sparsify():
            return SparseTransform(step.kind, step.share, step.error_feedback)
        case Cast():
            return CastTransform(step.dtype)
        case Quantise():
            return QuantiseTransform(step.bits)
        case Custom():
            return CustomTransform.of(step)
