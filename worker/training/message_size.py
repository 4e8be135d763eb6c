"""The size of a model as it travels, against what one message holds: before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fluffle.schemas import UserError
from fluffle.schemas.codec import MAX_HEAD_BYTES, MAX_MESSAGE_BYTES, MAX_TENSORS
from fluffle.schemas.sizes import human_bytes
from fluffle.schemas.tensors import DTYPES, Spec

#: What a message has of each tensor beside its values, at most, but for its name.
_TABLE = 128


def check_fits(sent: Spec, paths: Callable[[], Mapping[str, str]] = dict, copies: int = 1) -> None:
    """Raises: UserError where a model is more than one message holds, with any broker.

    sent: what travels; paths: the names that a person knows, where those are others.
    copies: of the trainable tensors; a strategy may send something of their size along.
    """
    if len(sent) > MAX_TENSORS:
        raise UserError(
            f"the model has {len(sent):,} tensors that travel, and a message holds "
            f"{MAX_TENSORS:,}: keep or freeze some ([weights]), or join them"
        )
    sizes = {
        name: math.prod(shape) * DTYPES[dtype].itemsize for name, (dtype, shape) in sent.items()
    }
    total = MAX_HEAD_BYTES
    for name, of_values in sizes.items():
        count = copies if name.startswith("trainable/") else 1
        total += count * (of_values + len(name) + _TABLE)
    if total <= MAX_MESSAGE_BYTES:
        return
    largest = max(sizes, key=sizes.__getitem__)
    size = human_bytes(sizes[largest])
    along = "" if copies == 1 else " with what the strategy sends along"
    raise UserError(
        f"the model is {human_bytes(total)} as it travels{along}, more than the "
        f"{human_bytes(MAX_MESSAGE_BYTES)} (512 MiB) that a message holds; its largest weight, "
        f"{paths().get(largest, largest)}, is {size}: keep or freeze weights "
        "([weights]; adapters are 1 % of a model), or use a smaller one"
    )
