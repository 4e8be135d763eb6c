"""The layout of a local training: which examples each step of the compiled program takes.

A program is compiled for one ``Shape``, and clients of one shape can share it, as lanes. Batches
of an epoch are rows of ``batch_size`` indices. What fills a row up is masked where the model allows
it (each example by itself decides its loss: ``padded``); else the last, short batch of an epoch
is a step of its own, of its true size, as batch normalisation wants it. The number of rows is
rounded up, so that clients of about the same size share a program; rows without examples are left
out by the program, and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int32]


class Shape(NamedTuple):
    """What a program is compiled for."""

    epochs: int
    #: Batches of an epoch, of ``batch_size`` each.
    rows: int
    batch_size: int
    #: Examples of an epoch's last batch, where that is a step of its own.
    rest: int
    #: Whether rows may have fewer examples than ``batch_size``.
    masked: bool
    #: Whether rows may have none.
    skips: bool


@dataclass(frozen=True)
class Layout:
    """One training's examples, laid out."""

    #: Shape (epochs, rows, batch_size); what fills up is 0.
    indices: Indices
    #: How many of each row count, shape (epochs, rows).
    counts: NDArray[np.int32]
    #: Shape (epochs, rest).
    rest: Indices


def shape_of(examples: int, epochs: int, batch_size: int, padded: bool) -> Shape:
    """The shape of a client's training."""
    if padded and examples < batch_size:  # one batch of what there is, not one of 2^31
        size = rounded(examples)
        return Shape(epochs, 1, size, 0, masked=size > examples, skips=False)
    full, rest = divmod(examples, batch_size)
    steps = full + (1 if padded and rest else 0)
    rows = rounded(steps)
    return Shape(
        *(epochs, rows, batch_size if rows else 1, 0 if padded else rest),
        masked=padded and rest > 0,
        skips=rows > steps,
    )


def rounded(steps: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, …: at most half as many again, few programs."""
    if steps == 0:
        return 0
    power = 1 << (steps - 1).bit_length()
    return power * 3 // 4 if power >= 4 and steps <= power * 3 // 4 else power


def layout(indices: Indices, shape: Shape, rng: np.random.Generator) -> Layout:
    """The examples of one training, in a new order for each epoch."""
    rows = np.zeros((shape.epochs, shape.rows * shape.batch_size), np.int32)
    rests = np.zeros((shape.epochs, shape.rest), np.int32)
    inside = len(indices) - shape.rest
    for epoch in range(shape.epochs):
        order = rng.permutation(indices)
        rows[epoch, :inside] = order[:inside]
        rests[epoch] = order[inside:]
    starts = np.arange(shape.rows) * shape.batch_size
    counts = np.clip(inside - starts, 0, shape.batch_size).astype(np.int32)
    return Layout(
        rows.reshape(shape.epochs, shape.rows, shape.batch_size),
        np.broadcast_to(counts, (shape.epochs, shape.rows)),
        rests,
    )
