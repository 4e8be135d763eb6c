"""A client step of one's own: a class in a file, or of an installed package, on both sides.

Each side loads it by itself. What it does is watched: at a client a mistake in it ends the training
with one line, at the server an update that it cannot restore is rejected like any other that does
not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fluffle.schemas.errors import UserError
from fluffle.schemas.extensions import UPDATE_STEP, check_verbs, told
from fluffle.schemas.steps import Custom
from fluffle.schemas.tensors import Spec, Tensors, spec
from fluffle.schemas.transforms.base import Draws, Transform


@dataclass(frozen=True)
class CustomTransform:
    """The user's transform, watched."""

    name: str
    inner: Transform

    @classmethod
    def of(cls, step: Custom) -> CustomTransform:
        """The transform that a step names. Raises: UserError."""
        made = UPDATE_STEP.make(step.kind, step.parameters)
        check_verbs("the step", step.kind, made, ("spec", "apply", "restore"))
        return cls(step.kind, made)

    def spec(self, before: Spec) -> Spec:
        """What ``apply`` makes of tensors of this spec. Raises: UserError."""
        made = self._trying("spec", lambda: self.inner.spec(before))
        return {name: (dtype, tuple(shape)) for name, (dtype, shape) in made.items()}

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """At the client. Raises: UserError for a mistake in it, or other tensors than it said."""
        made: Tensors = self._trying("apply", lambda: self.inner.apply(tensors, draws))
        if spec(made) != self.spec(spec(tensors)):
            raise UserError(f"apply of the step {self.name} makes other tensors than its spec says")
        return made

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """At the server. Raises: ValueError, whatever it raises: what came may be anything."""
        try:
            made = self.inner.restore(tensors, before)
        except Exception as error:
            raise ValueError(f"restore of the step {self.name}: {error!r}") from error
        if spec(made) != before:
            raise ValueError(f"restore of the step {self.name} makes other tensors than were sent")
        return made

    def _trying(self, verb: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            said = told(error, self.inner)
            raise UserError(f"{verb} of the step {self.name} failed: {said}") from error
