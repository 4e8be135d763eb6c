"""A message that calls itself a very new model: nobody trains it, and nobody waits for it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Experiment, GlobalModel, Plan, Run
from fluffle.schemas.messages import order
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.slot import Slot, SlotContext

RUN = Run(run_id="run", run_started=1_795_410_451_550, epoch=1)


def real(version: int) -> Envelope:
    """A global model."""
    plan = Plan.of(Experiment(), "delta")
    model = GlobalModel(
        run=RUN, version=version, plan=plan, tensors={"trainable/0": np.ones(3, np.float32)}
    )
    envelope = Envelope.of(model)
    return dataclasses.replace(envelope, content=envelope.body)


def garbage(envelope: Envelope) -> Envelope:
    return dataclasses.replace(
        envelope, content=b"no model", headers={**envelope.headers, "version": 2**40}
    )


def mislabelled(envelope: Envelope) -> Envelope:
    return dataclasses.replace(envelope, headers={**envelope.headers, "version": 2**40})


def test_a_model_is_what_its_headers_tell_of() -> None:
    model = real(3).model()
    assert model is not None
    assert model.version == 3
    assert garbage(real(3)).model() is None
    assert mislabelled(real(3)).model() is None
    assert dataclasses.replace(real(3), headers={}).model() is None


@pytest.mark.parametrize("false", [garbage, mislabelled])
def test_a_slot_waits_for_the_real_newest(
    false: Callable[[Envelope], Envelope], tmp_path: Path
) -> None:
    # Given a worker whose newest model is none
    broker = EmbeddedBroker()
    leader, port = broker.aggregator(), broker.worker("w", 1)
    assert leader.lead(1.0)
    leader.publish_model(real(1))
    leader.publish_model(false(real(1)))
    # When it fetches a model, and the leader publishes the real one again
    slot = Slot(
        SlotContext(
            worker_id="w", port=port, shutdown=Shutdown(port, print), states=ClientStates(tmp_path)
        )
    )
    found: list[GlobalModel | None] = []
    fetching = threading.Thread(target=lambda: found.append(slot._fetch(None)), daemon=True)
    fetching.start()
    fetching.join(0.2)
    assert not found
    leader.publish_model(real(1))
    fetching.join(20.0)
    # Then it is taken
    (model,) = found
    assert model is not None
    assert order(model.headers()) == order(real(1).headers)
