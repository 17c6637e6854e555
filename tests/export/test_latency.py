"""Times are compared in turns, and no longer than it takes to tell."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from medtl_export import latency
from medtl_export.latency import compare, race, settle

BATCHES = [np.full((1, 1, 2, 2), value, np.float32) for value in range(3)]


class Sleeper:
    """A network that takes so many seconds, and remembers what it saw."""

    def __init__(self, seconds: float, log: list[object] | None = None) -> None:
        self.seconds, self.seen, self.log = seconds, [], log if log is not None else []

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self.seen.append(float(images[0, 0, 0, 0]))
        self.log.append(self)
        time.sleep(self.seconds)
        return {}


def pairs(before: float, after: float, *, rounds: int = 60, noise: float = 0.1) -> NDArray:
    """Return times with noise that only adds, as on a machine that does other things too."""
    rng = np.random.default_rng(0)
    return np.array([before, after]) * (1 + noise * rng.gamma(1, size=(rounds, 2)))


def test_times_are_lower_quartiles_in_milliseconds() -> None:
    times = pairs(0.010, 0.004)
    found = compare(times)
    assert found.reference_ms == pytest.approx(1000 * np.quantile(times[:, 0], 0.25))
    assert found.candidate_ms == pytest.approx(1000 * np.quantile(times[:, 1], 0.25))
    assert found.speed_up == pytest.approx(found.reference_ms / found.candidate_ms)
    assert found.rounds == 60


def test_the_interval_is_over_rounds_drawn_with_replacement() -> None:
    times = pairs(0.010, 0.004, noise=0.5)
    found = compare(times)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(2000):
        rows = times[rng.integers(len(times), size=len(times))]
        drawn.append(np.quantile(rows[:, 0], 0.25) / np.quantile(rows[:, 1], 0.25))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, rel=0.03)
    assert found.high == pytest.approx(high, rel=0.03)
    assert found.low < found.speed_up < found.high


@pytest.mark.parametrize(("after", "clear"), [(0.005, True), (0.02, True), (0.01, False)])
def test_the_interval_holds_one_only_where_the_times_are_alike(after: float, clear: bool) -> None:
    found = compare(pairs(0.01, after))
    assert (found.low > 1 or found.high < 1) is clear


def test_more_rounds_make_the_interval_narrower() -> None:
    few, many = (compare(pairs(1, 1, rounds=n, noise=0.5)) for n in (20, 500))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_a_few_rounds_in_which_the_machine_was_busy_change_little() -> None:
    times = pairs(0.01, 0.005)
    busy = times.copy()
    busy[::5] *= 30
    assert compare(busy).speed_up == pytest.approx(compare(times).speed_up, rel=0.05)


def test_the_same_times_give_the_same_interval() -> None:
    assert compare(pairs(1, 2)) == compare(pairs(1, 2))


def test_networks_run_in_turns_after_a_warm_up_and_see_all_batches() -> None:
    log: list[object] = []
    networks = [Sleeper(0, log) for _ in range(3)]
    times = race(networks, BATCHES, seconds=0)
    assert times.shape == (10, 3)
    assert (times > 0).all()
    warm_up = len(log) - 30
    assert warm_up == 9
    assert log[warm_up:] == networks * 10
    assert networks[0].seen[3:] == networks[1].seen[3:] == [i % 3 for i in range(10)]


def test_there_are_at_most_sixty_rounds_however_much_time_there_is() -> None:
    assert len(race([Sleeper(0)], BATCHES, seconds=1000)) == 60


def test_it_is_settled_early_where_the_difference_is_clear() -> None:
    slow, fast = Sleeper(0.003), Sleeper(0)
    found = settle(slow, fast, BATCHES, seconds=1000)
    assert found.rounds == 60
    assert found.low > 1
    found = settle(fast, slow, BATCHES, seconds=1000)
    assert found.rounds == 60
    assert found.high < 1


def unclear(monkeypatch: pytest.MonkeyPatch, seconds_a_round: float = 0) -> list[int]:
    """Replace the clockwork: every round takes the same for both, and a made-up time."""
    asked: list[int] = []
    clock = [0.0]

    def run_in_turns(networks: object, batches: object, *, seconds: float) -> NDArray:
        asked.append(1)
        clock[0] += 60 * seconds_a_round
        return pairs(1, 1, noise=0.5)

    monkeypatch.setattr(latency, "race", run_in_turns)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    return asked


def test_where_it_stays_unclear_rounds_are_counted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = unclear(monkeypatch)
    found = settle(Sleeper(0), Sleeper(0), BATCHES)
    assert found.rounds == 600
    assert len(asked) == 10
    assert found.low <= 1 <= found.high


def test_where_it_stays_unclear_it_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = unclear(monkeypatch, seconds_a_round=0.1)
    assert settle(Sleeper(0), Sleeper(0), BATCHES, seconds=10).rounds == 120
    assert len(asked) == 2
