"""The doctor: what this machine has and lacks, and what to do about the usual troubles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fluffle.doctor.finding import Finding
from fluffle.doctor.machine import (
    find_backend,
    find_data,
    find_disk,
    find_docker,
    find_gpu,
    find_memory,
    find_python,
)
from fluffle.doctor.rabbitmq import find_broker, find_server, find_settings
from fluffle.doctor.troubles import TROUBLES

__all__ = ["Finding", "examine", "troubles"]


def examine(
    broker: str, federation: str, out: Path, api: str = "", parameters: int = 0
) -> list[Finding]:
    """Everything, in the order in which it is shown; the slow checks run side by side.

    broker: an AMQP URL, or "" for none. out: the folder that runs shall go to.
    api: where the broker's management API is, or "" for its host.
    parameters: of a model that the broker's messages shall hold; 0: of none.
    """
    import pika  # noqa: F401 several checks import it, whose parts two threads cannot

    checks = [
        find_python,
        find_backend,
        find_gpu,
        find_memory,
        lambda: find_disk(out),
        find_data,
        find_server,
        lambda: find_broker(broker, federation, parameters),
        lambda: find_settings(broker, federation, api),
        find_docker,
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return [future.result() for future in [pool.submit(check) for check in checks]]


def troubles(findings: list[Finding]) -> dict[str, str]:
    """What people run into, each with what was found here."""
    facts = {finding.name: finding.facts for finding in findings}
    return {trouble: answer(facts) for trouble, answer in TROUBLES.items()}
