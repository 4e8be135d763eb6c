"""Probes over HTTP: each path answers what it is asked, and no other does."""

from __future__ import annotations

import urllib.request
from urllib.error import HTTPError

import pytest

from fluffle.metrics import new_registry
from fluffle.probes import Readiness, served


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_each_path_answers_for_itself() -> None:
    # Given a service that is starting
    readiness = Readiness()
    with served(new_registry(), 0, "127.0.0.1", readiness) as url:
        base = url.removesuffix("/metrics")
        # Then it lives, is not ready, and says why
        assert asked(f"{base}/livez") == (200, "ok\n")
        assert asked(f"{base}/healthz") == (200, "ok\n")
        assert asked(f"{base}/readyz") == (503, "starting\n")
        # When its broker is there
        readiness.waits = lambda: ""
        # Then it is
        assert asked(f"{base}/readyz") == (200, "ok\n")
        assert "process_cpu_seconds_total" in asked(url)[1]
        # And nothing else is answered
        for path in ("", "/", "/healthz/x", "/anything", "/metrics/x"):
            assert asked(f"{base}{path}")[0] == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_says_nothing_of_what_it_is_of(path: str) -> None:
    with served(new_registry(), 0, "127.0.0.1") as url:
        assert "fluffle" not in asked(url.replace("/metrics", path))[1]
