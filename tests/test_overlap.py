"""Threads that read and write beside the work: order, errors, and how many items are in memory."""

from __future__ import annotations

import threading

import pytest

from stereo_core.overlap import WAITING, ahead, mapped

THREADS = 3


class BrokenError(Exception):
    """What a test breaks with."""


def broken_at(place: int, count: int = 9):
    """The numbers up to `place`, where it breaks."""
    for number in range(count):
        if number == place:
            raise BrokenError(number)
        yield number


def read(items) -> tuple[list, list[int]]:
    """All that comes, and where it breaks."""
    found = []
    try:
        for item in items:
            found.append(item)
    except BrokenError as error:
        return found, list(error.args)
    return found, []


def test_results_come_in_order_however_long_each_takes():
    """The first waits for the last of those that can be at work beside it."""
    later = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert later.wait(60)
        if number == THREADS + WAITING - 1:
            later.set()
        return 10 * number

    assert list(mapped(work, range(20), THREADS)) == [10 * number for number in range(20)]


def test_as_many_are_at_work_as_there_are_threads():
    together = threading.Barrier(THREADS)
    assert len(list(mapped(lambda _: together.wait(60), range(2 * THREADS), THREADS))) == 2 * THREADS


def test_few_items_are_in_hand_while_work_is_slow():
    given, go_on = [], threading.Event()

    def items():
        for number in range(50):
            given.append(number)
            if len(given) == THREADS + WAITING:
                go_on.set()  # nobody else will
            yield number

    asked = 0
    for _ in mapped(lambda _: go_on.wait(60), items(), THREADS):
        asked += 1
        assert len(given) <= asked + THREADS + WAITING
    assert asked == 50


@pytest.mark.parametrize("place", [0, 1, 8])
def test_an_error_of_the_items_comes_after_the_results_before_it(place):
    done = []
    assert read(mapped(done.append, broken_at(place), THREADS)) == ([None] * place, [place])
    assert sorted(done) == list(range(place))
    assert read(ahead(broken_at(place))) == (list(range(place)), [place])


def test_the_first_error_of_the_work_counts_and_what_was_taken_is_finished():
    given, done = [], []

    def items():
        for number in broken_at(5):
            given.append(number)
            yield number

    def work(number: int) -> int:
        if number == 3:
            raise BrokenError(number)
        done.append(number)
        return number

    assert read(mapped(work, items(), THREADS)) == ([0, 1, 2], [3])
    assert sorted(done) == [number for number in given if number != 3]


def test_items_are_taken_ahead_in_a_thread_but_the_first():
    """Where it is taken, a loader can start its processes; and no more than WAITING are taken early."""
    given, threads = [], []

    def items():
        for number in range(20):
            given.append(number)
            threads.append(threading.current_thread())
            yield number

    for number, item in enumerate(ahead(items())):
        assert number == item and len(given) <= number + 1 + WAITING
    here = threading.main_thread()
    assert threads[0] is here and here not in threads[1:] and len(set(threads[1:])) == 1


def test_who_stops_early_leaves_no_thread():
    before = set(threading.enumerate())
    for walk in (ahead(iter(range(100))), mapped(str, range(100), THREADS)):
        next(walk)
        walk.close()
    assert set(threading.enumerate()) <= before


def test_nothing_gives_nothing():
    assert list(ahead([])) == list(mapped(str, [], THREADS)) == []
