"""An aggregator that stays when its run is over, as a StatefulSet wants it."""

from __future__ import annotations

import os
import signal
import threading

from fluffle.commands.service import wait_to_be_told


def test_who_stays_leaves_when_told_to(said: list[str]) -> None:
    # Given somebody who tells it in a moment
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    # When its run is over
    wait_to_be_told("finished")
    # Then it has waited, said so, and the signal means again what it meant
    timer.join()
    assert said == ["the run is finished; staying until told to stop"]
    assert signal.getsignal(signal.SIGTERM) is not None
