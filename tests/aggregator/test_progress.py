"""What an aggregator's log tells of a run: versions within bounds, and how it ended."""

from __future__ import annotations

import logging
from pathlib import Path

from fluffle import logs
from fluffle.aggregator import progress
from tests.aggregator.scripted import Federation


def test_versions_are_logged_at_most_one_a_second_and_the_end_always(
    tmp_path: Path, said: list[str]
) -> None:
    # Given a run that makes version 0 and three more within a second
    federation = Federation(tmp_path, experiment={"versions": 5}, aggregation={"quorum": 1})
    for _ in range(3):
        federation.answer(1)
    # When it goes on after that, to its end
    federation.now += 1.0
    federation.answer(1)
    federation.finish()
    # Then the versions in between are counted in a line
    told = [line for line in said if "closed by" in line]
    assert told[0] == "version 0, closed by initial; 0 updates counted"
    assert told[1].startswith("version 3 (2 more before it), closed by quorum; 3 updates counted")
    assert len(told) == 2
    assert said[-1].startswith("finished at version 5 after 1.0 s; 5 updates counted")


def test_a_command_that_shows_progress_itself_turns_it_off(said: list[str]) -> None:
    made = progress.Progress(lambda: 0.0)
    with logs.silenced(progress.log):
        made.end("finished", 5, 5, None)
    assert said == []
    made.end("finished", 5, 5, None)
    assert said == ["finished at version 5 after 0.0 s; 5 updates counted"]
    assert logging.getLogger("fluffle.aggregator.progress") is progress.log
