"""Steps between training and sending: the experiment's ``[[update]]`` tables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from fluffle.schemas.table import Parameters

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Clip(_Step):
    """Shorten the delta to this length where it is longer."""

    #: Names the step.
    kind: Literal["clip"]
    #: The greatest L2 norm over all trainable tensors.
    norm: _Positive


class Noise(_Step):
    """Add independent Gaussian noise to every trainable value."""

    #: Names the step.
    kind: Literal["noise"]
    #: Its standard deviation.
    std: _Positive


class Sparsify(_Step):
    """Send a share of the trainable values: the largest, or some at random."""

    #: The largest values, or some at random.
    kind: Literal["top_k", "random_k"]
    #: The share of values that is sent.
    share: Annotated[float, Field(gt=0, le=1)]
    #: Keep what was not sent, and add it to the client's next update.
    error_feedback: bool = True


class Cast(_Step):
    """Send 16 bits a value, rounded up or down at random so that the mean is right."""

    #: Names the step.
    kind: Literal["cast"]
    #: The format of each value. bfloat16 has float32's range and fewer digits.
    dtype: Literal["float16", "bfloat16"]


class Quantise(_Step):
    """Send few bits a value, rounded up or down at random so that the mean is right."""

    #: Names the step.
    kind: Literal["quantise"]
    #: How many bits a value takes.
    bits: Literal[1, 2, 4, 8] = 8


#: The kinds that come with Fluffle.
KINDS = ("clip", "noise", "top_k", "random_k", "cast", "quantise")


class Custom(_Step):
    """A step of one's own: of a file beside the experiment, or of an installed package."""

    #: FILE.py:Class, or the name that the package gave it.
    kind: Annotated[str, Field(max_length=256)]
    #: What the class is made with: its keyword arguments.
    parameters: Parameters | None = None


def _tag(step: Any) -> str:
    kind = step.get("kind") if isinstance(step, dict) else getattr(step, "kind", None)
    return kind if kind in KINDS else "custom"


Step = Annotated[
    Annotated[Clip, Tag("clip")]
    | Annotated[Noise, Tag("noise")]
    | Annotated[Sparsify, Tag("top_k")]
    | Annotated[Sparsify, Tag("random_k")]
    | Annotated[Cast, Tag("cast")]
    | Annotated[Quantise, Tag("quantise")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(_tag),
]


def _in_order(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    if sum(isinstance(step, Sparsify) for step in steps) > 1:
        raise ValueError("top_k or random_k can stand once")
    if any(isinstance(step, Cast | Quantise) for step in steps[:-1]):
        raise ValueError("cast or quantise has to be the last step")
    return steps


#: In the order in which they are done; the server undoes them in reverse.
Steps = Annotated[
    tuple[Step, ...], Field(strict=False, min_length=1, max_length=8), AfterValidator(_in_order)
]


def remembers(steps: tuple[Step, ...]) -> bool:
    """Whether clients keep something from one update to the next."""
    return any(isinstance(step, Sparsify) and step.error_feedback for step in steps)
