"""FedRep's client. Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for
Personalized Federated Learning, arXiv 2102.07078, Algorithm 1::

    tau times:  h_k <- GRD(f_k(h_k, phi), h_k, alpha)       the head, which stays with the client
    then:       phi_k <- GRD(f_k(h_k, phi_k), phi_k, alpha)   the body, from phi, for its update

so that the head is fitted to the body that came before the body moves. The head h_k is what
``[weights] keep`` names; it goes on from the client's last turn. tau is ``head_epochs`` epochs of
the turn's ``training.epochs``, the rest are the body's; the optimizer is one for both, and what it
remembers of the part that stays is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluffle.worker.training.algorithms.base import Algorithm, Phase


class FedRep(Algorithm):
    """The head first, with the body as it came; then the body, with the head as it is."""

    def __init__(self, head_epochs: int | None) -> None:
        """``head_epochs``: None for all but the last."""
        self._head = head_epochs

    def phases(self, epochs: int) -> Sequence[Phase]:
        """h, then phi."""
        head = epochs - 1 if self._head is None else self._head
        return Phase(head, "keep"), Phase(epochs - head, "send")
