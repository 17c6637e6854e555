"""The search's decisions, on a bench whose measurements are made up."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from medtl_export.gate import Difference, Verdict
from medtl_export.latency import Latency
from medtl_export.search import Outcome, search
from medtl_export.structure import Structure
from medtl_export.targets import TARGETS
from medtl_export.workbench import Choice, Conditions

PARTS = ("stem", "depthwise", "stage 1", "stage 2")


def nothing_matters(_: Choice) -> float:
    return 1.0


@dataclass
class FakeBench:
    """Answers from functions of the choice: how fast, how far off, how large the drop."""

    speed_up: Callable[[Choice], float] = lambda _: 3.0
    error: Callable[[Choice], float] = nothing_matters
    drop: Callable[[Choice], float] = lambda _: 0.0
    measured: bool = True
    stem_can_be_packed: bool = True
    target: str = "cpu"
    final: float | None = None
    """The speed-up of the last comparison; None for the same as before."""
    width: float = 0.05
    """How far the interval of a speed-up reaches, as its part."""
    validation: tuple[int, ...] = tuple(range(10))
    timed: list[Choice] = field(default_factory=list)

    @property
    def conditions(self) -> Conditions:
        return Conditions(target=TARGETS[self.target], measured=self.measured)

    @property
    def structure(self) -> Structure:
        parts = {name: frozenset({f"node of {name}"}) for name in PARTS}
        return Structure(head=frozenset(), parts=parts, stages=("stage 1", "stage 2"))

    def raced(self, best: Choice, trial: Choice, **_: float) -> tuple[Latency, float]:
        self.timed.append(trial)
        return latency(self.speed_up(trial), self.width), self.speed_up(trial) / self.speed_up(best)

    def settled(self, _: str, model: Any) -> Latency:
        return latency(self.final or self.speed_up(model), self.width)

    def graph(self, choice: Choice) -> Choice:
        return choice

    def verdict(self, choice: Choice | None) -> Verdict:
        drop = 0.0 if choice is None else self.drop(choice)
        difference = Difference(value=-drop / 2, low=-drop, high=0.0)
        return Verdict(
            difference=difference, head="label", flips=0, accuracy={}, accepted=drop < 0.005
        )


def latency(speed_up: float, width: float) -> Latency:
    return Latency(
        reference_ms=10.0,
        candidate_ms=10.0 / speed_up,
        speed_up=speed_up,
        low=(1 - width) * speed_up,
        high=(1 + width) * speed_up,
        rounds=60,
    )


def found(bench: FakeBench) -> Outcome:
    return search(bench)  # pyright: ignore[reportArgumentType]


def test_what_makes_it_faster_is_kept_and_what_makes_it_slower_is_not() -> None:
    def speed_up(choice: Choice) -> float:
        gain = {"all": 1.2, "sums": 1.5, "products": 1.0}[choice.operators]
        gain *= 1.3 if "depthwise" in choice.in_float else 1.0
        return gain * (0.8 if "stem" in choice.in_float or choice.packed_stem else 1.0)

    outcome = found(FakeBench(speed_up=speed_up))
    assert outcome.choice is not None
    assert outcome.choice.operators == "sums"
    assert outcome.choice.in_float == {"depthwise"}
    assert not outcome.choice.packed_stem
    assert outcome.latency is not None
    assert outcome.latency.speed_up == pytest.approx(1.95)


def test_stages_are_tried_in_float_only_where_integers_are_not_fast_enough() -> None:
    quick, slow = FakeBench(speed_up=lambda _: 1.5), FakeBench(speed_up=lambda _: 1.3)
    found(quick)
    found(slow)
    assert not any("stage 1" in choice.in_float for choice in quick.timed)
    assert any("stage 1" in choice.in_float for choice in slow.timed)


def test_a_stage_whose_integers_cost_time_goes_back_to_float() -> None:
    outcome = found(FakeBench(speed_up=lambda c: 1.3 if "stage 2" in c.in_float else 1.1))
    assert outcome.choice is not None
    assert outcome.choice.in_float == {"stage 2"}


def test_for_openvino_the_stem_is_not_packed() -> None:
    bench = FakeBench(target="openvino")
    found(bench)
    assert not any(choice.packed_stem for choice in bench.timed)


def test_of_the_ranges_those_are_taken_that_change_logits_least() -> None:
    errors = {"min-max": 3.0, "percentile": 1.0, "MSE": 2.0}
    outcome = found(FakeBench(error=lambda choice: errors[choice.ranges]))
    assert outcome.choice is not None
    assert outcome.choice.ranges == "percentile"


def test_where_everything_is_slower_the_float_network_is_the_outcome() -> None:
    outcome = found(FakeBench(speed_up=lambda _: 0.8))
    assert outcome.choice is None
    assert not outcome.inaccurate
    assert "slower" in outcome.reason
    assert outcome.verdict.flips == 0


def test_a_last_comparison_that_does_not_confirm_the_speed_ends_in_float() -> None:
    outcome = found(FakeBench(final=1.02))  # its interval reaches below 1
    assert outcome.choice is None
    assert "not surely faster" in outcome.reason


def test_a_few_per_cent_are_not_worth_it_however_sure_they_are() -> None:
    assert found(FakeBench(final=1.04, width=0.01)).choice is None
    assert found(FakeBench(final=1.07)).choice is not None


def test_biases_are_corrected_before_anything_goes_back_to_float() -> None:
    outcome = found(FakeBench(drop=lambda choice: 0.0 if choice.corrected else 0.1))
    assert outcome.choice is not None
    assert outcome.choice.corrected
    assert outcome.choice.in_float == frozenset()


def test_the_part_that_harms_most_goes_back_to_float_first() -> None:
    harm = {"stem": 0.1, "depthwise": 0.2, "stage 1": 5.0, "stage 2": 0.3}

    def error(choice: Choice) -> float:
        return sum(harm[name] for name in PARTS if name not in choice.in_float)

    outcome = found(FakeBench(error=error, drop=lambda choice: 0.001 * error(choice)))
    assert outcome.choice is not None
    assert outcome.choice.in_float == {"stage 1"}


def test_without_an_accurate_candidate_the_float_network_is_the_outcome() -> None:
    outcome = found(FakeBench(drop=lambda _: 0.1))
    assert outcome.choice is None
    assert outcome.inaccurate
    assert "accurate" in outcome.reason


def test_an_accurate_candidate_that_float_parts_made_slow_is_not_taken() -> None:
    def speed_up(choice: Choice) -> float:
        return 3.0 - 0.8 * len(choice.in_float)

    outcome = found(FakeBench(speed_up=speed_up, drop=lambda c: 0.1 - 0.035 * len(c.in_float)))
    assert outcome.choice is None
    assert "not surely faster" in outcome.reason


def test_what_cannot_be_timed_here_is_made_by_rule_and_still_has_to_be_accurate() -> None:
    bench = FakeBench(measured=False, target="tensorrt")
    outcome = found(bench)
    assert bench.timed == []
    assert outcome.choice is not None
    assert outcome.choice.operators == "all"
    assert outcome.latency is None
    assert "not measured" in outcome.reason
    assert found(FakeBench(measured=False, target="arm", drop=lambda _: 0.1)).choice is None


def test_every_trial_is_in_the_table_once_with_what_came_of_it() -> None:
    bench = FakeBench(speed_up=lambda choice: 1.5 + len(choice.in_float) / 10)
    outcome = found(bench)
    rows = {row.choice: row for row in outcome.rows}
    assert len(rows) == len(outcome.rows)
    assert set(bench.timed) <= set(rows)
    assert all(row.remark for row in outcome.rows)
    assert all(rows[choice].latency is not None for choice in bench.timed)
    assert outcome.choice is not None
    assert rows[outcome.choice].remark == "chosen"
    assert rows[outcome.choice].latency == outcome.latency


def test_a_network_with_all_parts_in_float_is_not_called_int8() -> None:
    everything = frozenset(PARTS)
    bench = FakeBench(
        measured=False, target="arm", drop=lambda c: 0.1 * (not everything <= c.in_float)
    )
    outcome = found(bench)
    assert outcome.choice is None
    assert outcome.inaccurate


def test_what_was_measured_of_a_candidate_stays_in_its_row() -> None:
    errors = {"min-max": 3.0, "percentile": 1.0, "MSE": 2.0}
    outcome = found(FakeBench(error=lambda choice: errors[choice.ranges]))
    assert outcome.choice is not None
    rows = {row.choice: row for row in outcome.rows}
    before = rows[replace(outcome.choice, ranges="min-max")]
    assert before.verdict is not None  # it was judged when it was timed
    assert before.error == 3.0
