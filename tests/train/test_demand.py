"""What a run asks an autoscaler for, against a simulated one that refuses all or nothing."""

from hypothesis import given
from hypothesis import strategies as st

from terrafm.ray.runtime import Autoscaler
from terrafm.train.driver.autoscaling import MachineDemand

FORGOTTEN_SECONDS = 180


class Simulated:
    """An autoscaler that may bring `limit` machines, of which others want some."""

    def __init__(self, limit):
        self.limit = limit
        self.now = 0.0
        self.asked, self.asked_at, self.history = 0, 0.0, []
        self.round, self.refuses = 0, False
        self.demand = MachineDemand(self.send, self.look, lambda: self.now)

    def send(self, workers):
        self.asked, self.asked_at = workers, self.now
        self.history.append(workers)

    def look(self):
        return Autoscaler(self.round, self.refuses)

    def run(self, seconds, workers, fewest=0, every=5):
        """Time passes; the autoscaler has a round every so many seconds."""
        for _ in range(seconds):
            self.now += 1
            self.demand.ask(workers, fewest)
            if self.now % every == 0:
                self.round += 1
                self.refuses = self.asked > self.limit


@given(st.integers(0, 12), st.integers(1, 40), st.integers(1, 7))
def test_as_many_are_asked_for_as_can_be_had(limit, wanted, every):
    simulated = Simulated(limit)
    simulated.run(100, wanted, every=every)
    assert simulated.asked == min(limit, wanted)
    # Later it only looks whether there is more.
    simulated.history.clear()
    simulated.run(60, wanted, every=every)
    assert set(simulated.history) <= {min(limit, wanted), min(limit + 1, wanted)}


@given(st.integers(0, 5), st.integers(1, 12), st.integers(1, 5))
def test_more_are_asked_for_once_there_are_more(limit, wanted, every):
    simulated = Simulated(limit)
    simulated.run(300, wanted, every=every)
    simulated.limit = 20
    simulated.run(200, wanted, every=every)
    assert simulated.asked == wanted


def test_never_fewer_than_a_run_needs():
    simulated = Simulated(2)
    simulated.run(300, 8, fewest=3)
    assert min(simulated.history) == 3
    assert simulated.asked == 3


def test_two_runs_share_what_there_is():
    one, other = Simulated(8), Simulated(8)
    for second in range(1, 400):
        for run in (one, other):
            run.now = second
            run.demand.ask(8)
            if second % 5 == 0:
                run.round += 1
                run.refuses = one.asked + other.asked > 8
    assert one.asked + other.asked <= 8
    assert min(one.asked, other.asked) >= 2


@given(st.integers(0, 6), st.integers(1, 6))
def test_a_request_never_lapses_and_is_not_sent_all_the_time(limit, wanted):
    simulated = Simulated(limit)
    simulated.run(60, wanted)
    for _ in range(600):
        simulated.run(1, wanted)
        assert not simulated.asked or simulated.now - simulated.asked_at < FORGOTTEN_SECONDS / 2
    assert len(simulated.history) < 660 / 10


def test_nothing_more_is_wanted():
    simulated = Simulated(4)
    simulated.run(10, 2)
    simulated.run(300, 0)
    assert simulated.history == [2, 0]


def test_without_an_autoscaler_nobody_is_asked():
    def nobody(workers):
        raise AssertionError(workers)

    demand = MachineDemand(nobody, lambda: None)
    demand.ask(3)


def test_one_that_tells_no_rounds_is_asked_for_all():
    asked = []
    now = 0.0
    demand = MachineDemand(asked.append, lambda: Autoscaler(0, refuses=False), lambda: now)
    for now in range(100):  # noqa: B007 - the clock reads it
        demand.ask(5)
    assert asked == [5] * 5
