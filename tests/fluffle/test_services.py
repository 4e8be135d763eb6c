"""What the services say, and how often."""

from __future__ import annotations

from fluffle.services import Seldom


def test_attempts_to_reach_a_broker_are_told_every_ten_minutes_and_all_else_at_once() -> None:
    # Given a site whose broker is away for two days
    said: list[str] = []
    now = [0.0]
    say = Seldom(said.append, clock=lambda: now[0])
    lane = "site consuming: connection to 10.0.0.1:5672 lost (reset), trying again in"
    say(f"{lane} 0.2 s")
    while now[0] < 2 * 86_400:
        say(f"site publishing: no connection to 10.0.0.1:5672, trying again in {now[0] % 7:.1f} s")
        now[0] += 10.0
    # When it is back
    say("site consuming: connected again")
    say(f"{lane} 0.3 s")
    # Then what happened is there once, and that it goes on every ten minutes
    assert said[0] == f"{lane} 0.2 s"
    assert said[-2:] == ["site consuming: connected again", f"{lane} 0.3 s"]
    assert len(said) == 3 + 2 * 24 * 6
