"""Looks for the quantised network that is fastest and no worse than the float one.

Structure first, by time: which operators, which parts. What is slow on this engine is left in float
before accuracy is spent on it. Then ranges, by the error of the logits of calibration images. Then
the gate on the validation images; if it does not open, biases are corrected, and after that the
parts that lose most go back to float, one after the other. Last, a fresh comparison of times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from medtl_export.gate import Verdict
from medtl_export.latency import Latency
from medtl_export.ranges import METHODS
from medtl_export.workbench import Choice, Workbench

_TRIAL_SECONDS = 2.5
_FAST_ENOUGH = 1.4
"""Where all in integers is so many times faster, no stage is tried in float."""
_WORTH_IT = 1.05
"""The least speed-up for which a network is quantised: a few per cent come and go between runs."""
_AFFORDABLE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a candidate."""

    choice: Choice
    latency: Latency | None
    verdict: Verdict | None
    error: float | None
    remark: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a search arrived."""

    choice: Choice | None
    """None: the float graph is the best deal."""
    latency: Latency | None
    """Of the choice against the float graph; None where it was not measured."""
    verdict: Verdict
    """Of what goes into the file."""
    reason: str
    rows: tuple[Row, ...]
    inaccurate: bool = False
    """Whether accuracy is what integers failed by; quantisation-aware training may help then."""


def search(bench: Workbench, note: Callable[[str], None] = lambda _: None) -> Outcome:
    """Return the fastest accepted candidate, or the float graph where there is none."""
    return _Search(bench, note).run()


class _Search:
    def __init__(self, bench: Workbench, note: Callable[[str], None]) -> None:
        self._bench, self._note = bench, note
        self._rows: dict[Choice, Row] = {}

    def run(self) -> Outcome:
        measured = self._bench.conditions.measured
        choice = self._fastest() if measured else Choice()
        if measured and self._rows[choice].latency.high < 1:  # pyright: ignore[reportOptionalMemberAccess]
            return self._float(f"every int8 candidate is slower: {self._times(choice)}")
        choice = self._most_faithful(choice)
        accepted = self._accepted(choice)
        if accepted is None:
            return self._float("no int8 candidate is accurate enough", inaccurate=True)
        latency = None
        if measured:
            latency = self._bench.settled(accepted.name, self._bench.graph(accepted))
            faster = latency.low > 1 and latency.speed_up >= _WORTH_IT
            self._record(accepted, "chosen" if faster else "not faster", latency=latency)
            if not faster:
                return self._float(f"int8 is not surely faster: {self._times(accepted)}")
        else:
            self._record(accepted, "chosen")
        return Outcome(
            choice=accepted,
            latency=latency,
            verdict=self._bench.verdict(accepted),
            reason="the fastest accepted candidate" if measured else "by rule; not measured",
            rows=tuple(self._rows.values()),
        )

    def _float(self, reason: str, *, inaccurate: bool = False) -> Outcome:
        return Outcome(
            choice=None,
            latency=None,
            verdict=self._bench.verdict(None),
            reason=reason,
            rows=tuple(self._rows.values()),
            inaccurate=inaccurate,
        )

    def _times(self, choice: Choice) -> str:
        latency = self._rows[choice].latency
        assert latency is not None
        return (
            f"{latency.reference_ms:.2f} ms to {latency.candidate_ms:.2f} ms, speed-up "
            f"{latency.speed_up:.2f} ({latency.low:.2f} to {latency.high:.2f})"
        )

    def _record(self, choice: Choice, remark: str, latency: Latency | None = None) -> None:
        known = self._rows.get(choice)
        bench = self._bench
        latency = latency or (known.latency if known else None)
        verdict = known.verdict if known else None
        seconds = len(bench.validation) * (latency.candidate_ms if latency else 0) / 1000
        if verdict is None and seconds < _AFFORDABLE_SECONDS:
            verdict = bench.verdict(choice)
        self._rows[choice] = Row(
            choice=choice,
            latency=latency,
            verdict=verdict,
            error=known.error if known else None,
            remark=remark,
        )
        shown = f"  {latency.speed_up:.2f} times as fast" if latency else ""
        self._note(f"{choice.name}:{shown}  {remark}")

    def _fastest(self) -> Choice:
        """Change one thing at a time, and keep what makes the network faster."""
        best = Choice()
        latency, _ = self._bench.raced(best, best, seconds=_TRIAL_SECONDS)
        self._record(best, "first", latency)
        for changes in self._changes():
            for change in changes:
                trial = change(best)
                if trial == best or trial in self._rows:
                    continue
                latency, gain = self._bench.raced(best, trial, seconds=_TRIAL_SECONDS)
                faster = gain > 1
                self._record(trial, "faster" if faster else "slower", latency)
                best = trial if faster else best
        return best

    def _changes(self) -> Iterator[list[Callable[[Choice], Choice]]]:
        """Yield groups of changes to try; a group may depend on what the ones before found."""
        yield [lambda c: replace(c, operators="sums"), lambda c: replace(c, operators="products")]
        if self._bench.stem_can_be_packed and self._bench.conditions.target.engine != "openvino":
            yield [lambda c: replace(c, packed_stem=True)]
        for name in ("stem", "depthwise", "gates"):
            if name in self._bench.structure.parts:
                yield [_with_float(name)]
        fastest = max(row.latency.speed_up for row in self._rows.values() if row.latency)
        if fastest < _FAST_ENOUGH:
            yield [_with_float(name) for name in self._bench.structure.stages]

    def _most_faithful(self, choice: Choice) -> Choice:
        """Return the choice with the ranges that change logits least."""
        trials = [replace(choice, ranges=method) for method in METHODS]
        errors = {trial: self._bench.error(trial) for trial in trials}
        best = min(trials, key=errors.__getitem__)
        for trial in trials:
            own, like = self._rows.get(trial), self._rows.get(choice)
            judged = self._bench.verdict(trial) if trial == best else None
            self._rows[trial] = Row(
                choice=trial,
                # Ranges are numbers inside the graph: they do not change how fast it is.
                latency=like.latency if like else None,
                verdict=judged or (own.verdict if own else None),
                error=errors[trial],
                remark="best ranges" if trial == best else "larger error",
            )
        return best

    def _accepted(self, choice: Choice) -> Choice | None:
        """Return the choice, or one with remedies, that the gate lets through."""
        if self._is_accepted(choice):
            return choice
        repaired = replace(choice, corrected=True)
        if self._is_accepted(repaired):
            return repaired
        if self._bench.error(repaired) < self._bench.error(choice):
            choice = repaired
        for part in self._most_harmful(choice):
            choice = replace(choice, in_float=choice.in_float | {part})
            if self._is_all_float(choice):
                return None
            if self._is_accepted(choice):
                return choice
        return None

    def _is_all_float(self, choice: Choice) -> bool:
        structure = self._bench.structure
        return structure.nodes(choice.in_float) >= structure.nodes(frozenset(structure.parts))

    def _is_accepted(self, choice: Choice) -> bool:
        verdict = self._bench.verdict(choice)
        known = self._rows.get(choice)
        self._rows[choice] = Row(
            choice=choice,
            latency=known.latency if known else None,
            verdict=verdict,
            error=self._bench.error(choice),
            remark="accepted" if verdict.accepted else "worse",
        )
        self._note(f"{choice.name}:  {self._rows[choice].remark}")
        return verdict.accepted

    def _most_harmful(self, choice: Choice) -> list[str]:
        """Return the parts in integers, the one first whose error is largest."""
        parts = [name for name in self._bench.structure.parts if name not in choice.in_float]
        remaining = {name: self._bench.error(_with_float(name)(choice)) for name in parts}
        return sorted(parts, key=remaining.__getitem__)


def _with_float(part: str) -> Callable[[Choice], Choice]:
    return lambda choice: replace(choice, in_float=choice.in_float | {part})
