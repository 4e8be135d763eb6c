"""The gate between a site and its broker: every message of a site passes here, or does not.

It is the port that the site's service has, so nothing of ours can go around it::

    model ──> audit: received ──> the policy and its plan ─┬─ an objection ─> said once; remembered
                                                           └─ none ─────────> remembered
          └─> outside the hours, or a budget is used up: the service waits, as for a model

    update ──> of a model that came through here, without objection? ─> its tensors? ─> length?
           ──> hours? ─> bytes a day, updates an hour? ─> epsilon? ─┬─ no: audit: withheld, and said
                                                                    └─ yes: audit: sending ─> send
                                                                             audit: confirmed
    failure ──> hours? ─> bytes? ─> as above    event ──> audit: event ─> send
    anything else ──> audit: withheld

What was sent is counted from the audit log, at the start as well: budgets hold over restarts and
over runs, and the log has to be unbroken for the site to start. ``sending`` counts, confirmed or
not.
An update that is withheld is not sent, now or later; to the aggregator the site is merely silent.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

import numpy as np

from fluffle.broker import Delivery, Envelope, WorkerPort
from fluffle.broker.memory_queues import Order
from fluffle.schemas import ClientFailed, ClientUpdate, DecodeError, Event, GlobalModel, Plan
from fluffle.schemas.steps import Clip
from fluffle.worker.site.audit import AuditLog
from fluffle.worker.site.policy import SitePolicy

_log = logging.getLogger(__name__)

DAY_S, HOUR_S = 24 * 3600.0, 3600.0
#: Models that updates may still be of.
_MODELS = 16
#: Rounding of a clipped update.
_SLACK = 1.001


class Gate:
    """A ``WorkerPort`` that holds to a policy and writes the audit log."""

    def __init__(
        self,
        port: WorkerPort,
        policy: SitePolicy,
        audit: AuditLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """clock: seconds since 1970. Raises: UserError where the log is no unbroken one."""
        self._port = port
        self._policy = policy
        self._audit = audit
        self._clock = clock
        #: When and how many bytes were sent in the last day, and when updates in the last hour.
        self._bytes: deque[tuple[float, int]] = deque()
        self._updates: deque[float] = deque()
        self.rho = 0.0
        #: (run, version) -> the plan, and what the policy has against it.
        self._plans: dict[tuple[str, int], tuple[Plan, str]] = {}
        self._seen: Order | None = None
        self._said = ""
        for entry in audit.entries():
            if entry.get("what") == "sending":
                self._count(entry["at"], entry["bytes"], entry.get("rho"))

    # ---- what comes in

    @property
    def user(self) -> str | None:
        """As ``WorkerPort``."""
        return self._port.user

    def objection_to(self, model: GlobalModel) -> str:
        """What the policy has against the plan of a model; nothing where it has nothing."""
        return self._policy.objection_to(model.plan)

    def newest_model(self) -> Envelope | None:
        """As ``WorkerPort``."""
        return self._received(self._port.newest_model())

    def wait_model(self, newer_than: Order | None, timeout_s: float) -> Envelope | None:
        """As ``WorkerPort``; none comes while the policy lets nothing leave."""
        closed = self._closed()
        if closed:
            self._say(f"{closed}; waiting")
            time.sleep(timeout_s)
            return None
        return self._received(self._port.wait_model(newer_than, timeout_s))

    def forget_model(self, envelope: Envelope) -> None:
        """As ``WorkerPort``."""
        self._port.forget_model(envelope)

    def receive_assignment(self, timeout_s: float) -> Delivery | None:
        """None: a site takes no turns."""
        return None

    def ack(self, delivery: Delivery) -> None:
        """As ``WorkerPort``."""
        self._port.ack(delivery)

    def close(self) -> None:
        """As ``WorkerPort``."""
        self._port.close()

    # ---- what goes out

    def submit(self, envelope: Envelope) -> None:
        """As ``WorkerPort``, if the policy lets it leave; else it does not, and that is said."""
        rho, why = self._judge(envelope)
        if why:
            self._audit.add("withheld", why=why, **_about(envelope))
            _log.warning(f"not sent: {why}")
            return
        if rho is not None:
            # In the log before it leaves, and counted whether it is confirmed or not.
            self._audit.add("sending", rho=rho, **_about(envelope))
        else:
            self._audit.add("sending", **_about(envelope))
        self._count(self._clock(), envelope.size, rho)
        self._port.submit(envelope)
        self._audit.add("confirmed", message_id=envelope.message_id)

    def emit(self, envelope: Envelope) -> None:
        """As ``WorkerPort``: that it joined or left."""
        try:
            known = isinstance(envelope.message(), Event)
        except DecodeError:
            known = False
        self._audit.add("event" if known else "withheld", **_about(envelope))
        if known:
            self._port.emit(envelope)

    # ---- the policy

    def _judge(self, envelope: Envelope) -> tuple[float | None, str]:
        """What an update costs (None: it is none), and why it may not leave."""
        try:
            message = envelope.message()
        except DecodeError as error:
            return None, f"no message of ours ({error})"
        if not isinstance(message, ClientUpdate | ClientFailed):
            return None, f"a site sends no {envelope.type}"
        if self._policy.hours is not None and not self._policy.hours.holds(self._now()):
            return None, f"the policy opens {self._policy.hours.open}"
        limit = self._policy.traffic.bytes_a_day
        if limit is not None and self._sent_today() + envelope.size > limit:
            return None, f"{envelope.size} bytes more than the policy's {limit} bytes a day"
        if isinstance(message, ClientFailed):
            return None, ""
        known = self._plans.get((message.run.run_id, message.base_version))
        if known is None:
            return None, "an update of a model that did not come through here"
        plan, objection = known
        objection = (
            objection
            or self._policy.objection_to_tensors(message.tensors)
            or self._too_long(message, plan)
            or self._too_many()
        )
        rho = self._policy.cost_of(plan)
        return rho, objection or self._too_dear(rho)

    def _too_long(self, update: ClientUpdate, plan: Plan) -> str:
        """Of an update that is clipped and nothing else its length can be seen."""
        norm = self._policy.steps.clip_norm
        if norm is None or not all(isinstance(step, Clip) for step in plan.update or ()):
            return ""
        squares = sum(
            float(np.sum(np.square(a, dtype=np.float64)))
            for name, a in update.tensors.items()
            if name.startswith("trainable/")
        )
        length = math.sqrt(squares)
        return "" if length <= norm * _SLACK else f"an update of length {length:.4g}, not clipped"

    def _too_many(self) -> str:
        limit = self._policy.traffic.updates_an_hour
        self._forget_old()
        if limit is not None and len(self._updates) >= limit:
            return f"the policy's {limit} updates an hour are sent"
        return ""

    def _too_dear(self, rho: float) -> str:
        privacy = self._policy.privacy
        if privacy is None:
            return ""
        epsilon = self._policy.epsilon_of(self.rho + rho)
        if epsilon <= privacy.epsilon:
            return ""
        return f"epsilon would be {epsilon:.3g}, and the policy's is {privacy.epsilon:g}"

    def _closed(self) -> str:
        """Why nothing could leave now whatever it is; nothing where something can."""
        if self._policy.hours is not None and not self._policy.hours.holds(self._now()):
            return f"the policy opens {self._policy.hours.open}"
        limit = self._policy.traffic.bytes_a_day
        if limit is not None and self._sent_today() >= limit:
            return f"the policy's {limit} bytes a day are sent"
        return self._too_many()

    def _received(self, envelope: Envelope | None) -> Envelope | None:
        if envelope is None:
            return None
        try:
            model = envelope.message()
        except DecodeError:
            return envelope  # the service says so
        if isinstance(model, GlobalModel):
            key = model.run.run_id, model.version
            if key not in self._plans:
                objection = self.objection_to(model)
                why = {"objection": objection} if objection else {}
                self._audit.add("received", **_about(envelope), **why)
                while len(self._plans) >= _MODELS:
                    del self._plans[next(iter(self._plans))]
            self._plans[key] = model.plan, self.objection_to(model)
        return envelope

    # ---- counting

    def _count(self, at: float, size: int, rho: float | None) -> None:
        self._bytes.append((at, size))
        if rho is not None:
            self._updates.append(at)
            self.rho += rho

    def _sent_today(self) -> int:
        self._forget_old()
        return sum(size for _, size in self._bytes)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._bytes and self._bytes[0][0] <= now - DAY_S:
            self._bytes.popleft()
        while self._updates and self._updates[0] <= now - HOUR_S:
            self._updates.popleft()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock())

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.info(text)


def _about(envelope: Envelope) -> dict[str, object]:
    """What the log says of a message: enough to find it, and to know that it is the same."""
    names = ("run_id", "version", "base_version", "final")
    shown = {name: envelope.headers[name] for name in names if name in envelope.headers}
    digest = hashlib.sha256(envelope.body).hexdigest()
    about = {"type": envelope.type, "message_id": envelope.message_id, "bytes": envelope.size}
    return {**about, "body_sha256": digest, **shown}
