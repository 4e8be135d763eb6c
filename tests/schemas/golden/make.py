"""Writes the golden bytes of schema 1: one message of every type, the smallest and a full one.

``python tests/schemas/golden/make.py`` prints what it writes. Run it for a NEW schema only: bytes
of an old one are what programs in the field send, so they never change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Event,
    Experiment,
    GlobalModel,
    Masks,
    Message,
    Plan,
    Run,
    UnmaskRequest,
    encode,
)
from fluffle.schemas.masking import Member

HERE = Path(__file__).parent
RUN = Run(run_id="run-1", run_started=1_700_000_000_000, epoch=3)
PLAN = Plan.of(
    Experiment.model_validate(
        {
            "experiment": {"seed": 7},
            "task": {"name": "mnist-cnn", "clients": 100},
            "partition": {"kind": "dirichlet", "alpha": 0.25, "examples_per_client": 50},
            "training": {"epochs": 5, "optimizer": "sgd", "momentum": 0.5, "nesterov": True},
            "participation": {"pause_s": [0.5, 2.0]},
            "evaluation": {"examples": 1000},
        }
    ),
    "delta",
)
TENSORS = {
    "trainable/0": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "trainable/1": np.array(-1.5, np.float64),
    "non_trainable/0": np.zeros((0, 2), np.float16),
    "non_trainable/1": np.array([True, False, True]),
    "control/0": np.array([-(2**63), 2**63 - 1], np.int64),
    "control/1": np.array([[1], [255]], np.uint8),
}
ANSWER = {
    "update_id": "run-1:t12",
    "client": "client-5",
    "turn": 12,
    "base_version": 4,
    "worker": "w-1",
}
MESSAGES: dict[str, Message] = {
    "global-model": GlobalModel(
        run=RUN, version=5, attempt=1, final=True, updates=15, plan=PLAN, tensors=TENSORS
    ),
    "global-model-least": GlobalModel(
        run=RUN, version=0, plan=Plan.of(Experiment(), "weights"), tensors={}
    ),
    "assignment": Assignment(
        run=RUN,
        kind="initialise",
        assignment_id="run-1:t0",
        client="client-0",
        turn=0,
        version=0,
        exact_version=True,
        plan=PLAN,
    ),
    "assignment-least": Assignment(
        run=RUN, assignment_id="run-1:t12", client="client-5", turn=12, version=4
    ),
    "client-update": ClientUpdate(
        run=RUN,
        **ANSWER,
        sends="delta",
        examples=600,
        metrics={"loss": 0.25, "accuracy": 1.0},
        train_s=1.5,
        slot_s=2.0,
        received_bytes=407_080,
        tensors=TENSORS,
    ),
    "client-update-least": ClientUpdate(run=RUN, **ANSWER, sends="initial", examples=0, tensors={}),
    "client-failed": ClientFailed(run=RUN, **ANSWER, reason="out of memory — 内存不足"),
    "evaluation": Evaluation(
        run=RUN, version=5, worker="w-1", metrics={"loss": 0.125}, examples=10_000, seconds=0.5
    ),
    "evaluation-least": Evaluation(run=RUN, version=5, worker="w-1", metrics={}, examples=0),
    "event": Event(
        run=RUN, kind="training", worker="w-1", client="client-5", slots=2, peak_rss_mb=512.5
    ),
    "event-least": Event(run=RUN, kind="left", worker="w-1"),
    "unmask-request": UnmaskRequest.of(
        RUN,
        6,
        1000,
        [
            Member("run-1:12:5", "5", 16, bytes(range(80))),
            Member("run-1:site:v5.0", "site", 1, bytes(80)),
        ],
    ),
    "masks": Masks(
        run=RUN,
        version=6,
        request="0123456789abcdef" * 4,
        tensors={"masks/words": np.array([0, 1, 2**32 - 1], np.uint32)},
    ),
    "masks-refused": Masks(
        run=RUN, version=6, request="0" * 64, refused="an update is named twice", tensors={}
    ),
}


def main() -> None:
    """Write every message's bytes."""
    for name, message in MESSAGES.items():
        body = encode(message)
        (HERE / f"{name}.bin").write_bytes(body)
        print(f"{name}: {len(body)} bytes")


if __name__ == "__main__":
    main()
