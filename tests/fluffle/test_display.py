"""What a person sees during a run."""

from __future__ import annotations

import pytest

from fluffle.display import Display


def test_what_others_wrote_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    # Given a reason for a failure that looks like markup, from somebody's exception
    display = Display("run")
    # When it is said
    display.say("client 3 failed: KeyError: '[/weights]' [red]not in[/] index [0]")
    # Then it is there letter by letter (and did not end the aggregator)
    assert "'[/weights]' [red]not in[/] index [0]" in capfd.readouterr().err
