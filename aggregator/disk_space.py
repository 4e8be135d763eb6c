"""The disk that kept updates will take, said and checked before anything is trained."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from fluffle.schemas import Experiment, UserError
from fluffle.schemas.sizes import human_bytes
from fluffle.schemas.tensors import Spec

#: A message's own bytes beside its tensors, roughly.
_HEAD_BYTES = 1024


def room_for_updates(
    experiment: Experiment, folder: Path, update: Spec, kept: int, kept_bytes: int
) -> str:
    """One line that says what is still to be kept, and how much is free.

    An update takes what those kept so far took, else what ``update`` says. Raises: UserError where
    there is not room for all, and nothing but the number of versions ends the run.
    """
    stop = experiment.experiment
    tensors = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in update.values())
    size = kept_bytes // kept if kept else _HEAD_BYTES + tensors
    updates = max(0, stop.versions * experiment.quorum - kept)
    free = shutil.disk_usage(folder).free
    line = (
        f"keeping updates takes up to {human_bytes(updates * size)}: {updates} of "
        f"{human_bytes(size)} each; {human_bytes(free)} are free in {folder}"
    )
    ends_sooner = any(
        limit is not None for limit in (stop.target_accuracy, stop.patience, stop.max_minutes)
    )
    if updates * size > free and not ends_sooner:
        raise UserError(
            f"{line}. Make room, choose another --out or fewer experiment.versions, or set "
            "aggregation.keep_updates = false"
        )
    return line
