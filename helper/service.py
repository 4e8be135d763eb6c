"""The helper as a service: takes requests, and answers those that its operator allows.

A request names a set: update ids, their clients, whole weights, and the sealed seeds::

    request ──undecodable, or no set──────────────────────────> acked without an answer
        ──of another run, too few clients, a client or id twice,
          a weight out of bounds, a seal that does not open,
          an id of another set──────────────────────────────────> refused: said, nothing recorded
        ──else──> summed ──> recorded, one transaction (ledger.py) ──> answered ──> acked

A crash between any two of these leaves the request with the broker. It comes again, and its set is
then either new, or the recorded one, whose sum is the same. Seals are opened before the record, so
that nobody uses an update up by a request that cannot be answered.

An answer is given only after the record, and for one set of each id: of any update the aggregator
can learn the sum with those of one set, and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluffle.broker import Broker, Closed, Delivery, Envelope
from fluffle.broker.transport import HelperPort
from fluffle.helper.ledger import HelperLedger
from fluffle.schemas import DecodeError, Experiment, Masks, UnmaskRequest, UserError
from fluffle.schemas.codec import one_line
from fluffle.schemas.errors import describe
from fluffle.schemas.masking import Member, Sealed, mask_sum, require_cryptography
from fluffle.schemas.secure import SecureTable
from fluffle.schemas.tensors import Array, Tensors

_log = logging.getLogger(__name__)

#: How often the loop looks up from waiting for requests.
_LOOK_UP_S = 0.5
#: Where a run's own helper keeps its key and its ledger, in the run folder.
FOLDER = "helper"


class Refused(Exception):
    """Why this set is not unmasked, in one line."""


class HelperService:
    """Answers the requests of one experiment's runs over one port."""

    def __init__(self, experiment: Experiment, port: HelperPort, folder: Path) -> None:
        """Raises: UserError where the library, or the folder, is of no use."""
        require_cryptography()
        self._port = port
        self._policy = experiment.secure_aggregation or SecureTable()
        self._name = experiment.experiment.name
        self._ledger = HelperLedger(folder)
        self._stop = threading.Event()

    @property
    def public_key(self) -> str:
        """What experiments name as ``secure_aggregation.helper_key``."""
        return self._ledger.public

    def run(self) -> None:
        """Answer until told to stop."""
        while not self._stop.is_set():
            self.pump(_LOOK_UP_S)

    def stop(self) -> None:
        """Stop soon; from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Let go of the port and the ledger. May be called twice."""
        self._port.close()
        self._ledger.close()

    def pump(self, timeout_s: float) -> bool:
        """Answer one request; False if none came in time."""
        delivery = self._port.receive(timeout_s)
        if delivery is None:
            return False
        answer = self._answer(delivery)
        if answer is not None:
            self._port.answer(Envelope.of(answer))
        self._port.ack(delivery)
        return True

    def _answer(self, delivery: Delivery) -> Masks | None:
        try:
            request = delivery.envelope.message()
            if not isinstance(request, UnmaskRequest):
                raise DecodeError(f"a {request.type}, which asks for nothing")
            digest, members = request.digest, request.members()
        except DecodeError as error:
            _log.warning("a message that is no request: %s", one_line(str(error)))
            return None
        try:
            words = self._unmask(request, digest, members)
        except Refused as refused:
            _log.warning("refused %s: %s", request.message_id, refused)
            return self._masks(request, digest, {}, str(refused))
        _log.info("unmasked the sum of %d updates for version %d", len(members), request.version)
        return self._masks(request, digest, {"masks/words": words}, None)

    def _unmask(self, request: UnmaskRequest, digest: str, members: list[Member]) -> Array:
        """The sum of the masks, once the set is recorded. Raises: Refused."""
        policy, run_id = self._policy, request.run.run_id
        if not run_id.startswith(f"{self._name}-"):
            raise Refused(f"this helper is for runs of {self._name}")
        if len({member.update_id for member in members}) < len(members):
            raise Refused("an update is named twice")
        clients = {member.client for member in members}
        if len(clients) < len(members):
            raise Refused("a client has two updates in it")
        if len(clients) < policy.min_clients:
            raise Refused(f"{len(clients)} clients are fewer than {policy.min_clients}")
        if any(not 1 <= member.weight <= policy.max_weight for member in members):
            raise Refused(f"weights are whole numbers from 1 to {policy.max_weight}")
        sealed = Sealed(run_id, request.words, policy.min_clients, policy.max_weight)
        try:
            words = mask_sum(members, sealed, self._ledger.private)
        except DecodeError as error:
            raise Refused(str(error)) from None
        taken = self._ledger.record(digest, run_id, request.version, members)
        if taken is not None:
            raise Refused(f"update {taken} was unmasked in another set")
        return words

    def _masks(
        self, request: UnmaskRequest, digest: str, tensors: Tensors, refused: str | None
    ) -> Masks:
        return Masks(
            run=request.run,
            version=request.version,
            request=digest,
            refused=refused,
            tensors=tensors,
        )


def own_helper(experiment: Experiment, broker: Broker, folder: Path) -> HelperService | None:
    """The helper of a run that has one of its own, in the run's folder; None for all others.

    Raises: UserError where the experiment names another.
    """
    table = experiment.secure_aggregation
    if table is None:
        return None
    if table.helper_key is not None:
        raise UserError(
            "secure_aggregation.helper_key names a helper on a broker, and this run has its own: "
            "leave it out, or give the broker's URL with --broker"
        )
    return HelperService(experiment, broker.helper(), folder / FOLDER)


def check_helper_key(experiment: Experiment) -> None:
    """Raises: UserError where clients would not know whom to seal seeds to."""
    table = experiment.secure_aggregation
    if table is not None and table.helper_key is None:
        raise UserError(
            "[secure_aggregation] over a broker needs secure_aggregation.helper_key, which "
            "fluffle helper FILE says: the helper is a process of its own, best on a host of "
            "somebody else's"
        )


@contextmanager
def working(helper: HelperService) -> Iterator[None]:
    """The helper at work in a thread of its own. Raises: whatever ended it early."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            helper.run()
        except Closed:
            pass
        except BaseException as error:
            _log.error("the helper has ended: %s", describe(error))
            failure.append(error)

    thread = threading.Thread(target=work, name="helper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        helper.stop()
        thread.join()
        helper.close()
    if failure:
        raise failure[0]
