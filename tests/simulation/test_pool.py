"""The pool: most urgent first, a bounded backlog, errors where they are waited for."""

from __future__ import annotations

import threading

import pytest

from fluffle.simulation.pool import Pool


def test_results_come_whatever_the_order_in_which_they_are_collected() -> None:
    pool = Pool(lambda: "trainer", slots=3)
    jobs = [pool.submit(float(-i), lambda trainer, i=i: (trainer, i)) for i in range(50)]
    assert [pool.wait(job) for job in jobs] == [("trainer", i) for i in range(50)]
    pool.close()


def test_the_most_urgent_job_is_done_first() -> None:
    # Given one slot that is busy
    pool, gate, order = Pool(lambda: None, slots=1), threading.Event(), []
    first = pool.submit(0.0, lambda trainer: gate.wait())
    # When jobs queue up behind it
    jobs = [pool.submit(due, lambda trainer, due=due: order.append(due)) for due in (3, 1, 2)]
    gate.set()
    for job in (first, *jobs):
        pool.wait(job)
    # Then they are done in the order in which they are due
    assert order == [1, 2, 3]
    pool.close()


def test_no_more_results_lie_about_than_the_backlog_but_a_wanted_job_is_done() -> None:
    # Given a pool that may hold two results, and many jobs
    pool, done = Pool(lambda: None, slots=2, backlog=2), []
    jobs = [pool.submit(float(i), lambda trainer, i=i: done.append(i)) for i in range(20)]
    # When nobody collects
    threading.Event().wait(0.2)
    # Then it stops at two, or one more for the slot that had begun before
    assert 2 <= len(done) <= 3
    # And whatever is collected in turn is done
    for job in jobs:
        pool.wait(job)
    assert sorted(done) == list(range(20))
    pool.close()


def test_an_error_is_raised_where_the_result_is_waited_for() -> None:
    def broken(trainer: object) -> None:
        raise ValueError("no such client")

    pool = Pool(lambda: None, slots=1)
    job = pool.submit(0.0, broken)
    with pytest.raises(ValueError, match="no such client"):
        pool.wait(job)
    pool.close()
