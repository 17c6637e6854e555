"""Weights averaged over steps and over epochs."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medtl_models.network import Network

State = dict[str, Tensor]
Score = tuple[float, float]
"""The monitored metric (higher is better) and, between equals, the negative loss."""


class MovingAverage:
    """An exponential moving average of a network's weights and statistics.

    After t steps the average moves by max(1 - decay, 9 / (t + 8)) of the way to the network: at
    first it is the polynomial average of Shamir and Zhang (ICML 2013), which forgets where it began
    and spans the last tenth of the steps, and it becomes the exponential one of Polyak's kind when
    there have been enough.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Take a step towards the network as it is now."""
        self.steps += 1
        share = max(1 - self.decay, 9 / (self.steps + 8))
        averaged, current = [], []
        given = network.state_dict()
        for name, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(tensor)
                current.append(given[name])
            else:
                tensor.copy_(given[name])  # BatchNorm counts its batches
        get_ema_multi_avg_fn(1 - share)(averaged, current, self.steps)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on."""
        state = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
        return {"network": state, "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.network.load_state_dict(state["network"])
        self.steps = state["steps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An epoch's network."""

    epoch: int
    score: Score
    state: State


def best_candidates(candidates: Sequence[Candidate], at_most: int) -> tuple[Candidate, ...]:
    """Return the best candidates, the best first; of equals, the earlier."""
    ordered = sorted(candidates, key=lambda one: one.epoch)
    return tuple(sorted(ordered, key=lambda one: one.score, reverse=True)[:at_most])


def greedy_soup(
    candidates: Sequence[Candidate], score_of: Callable[[State], Score]
) -> tuple[State, tuple[int, ...], Score]:
    """Average candidates' weights as long as the average gets no worse.

    Wortsman et al., ICML 2022: the best first, each of the others is kept if the mean with it
    scores at least as well.

    Parameters
    ----------
    score_of
        Evaluates a state on validation.

    Returns
    -------
    The weights, the epochs that they are the mean of, and their score.
    """
    first, *others = best_candidates(candidates, len(candidates))
    kept, state, score = [first], first.state, first.score
    for one in others:
        tried = mean_state([member.state for member in (*kept, one)])
        found = score_of(tried)
        if found >= score:
            kept, state, score = [*kept, one], tried, found
    return state, tuple(member.epoch for member in kept), score


def mean_state(states: Sequence[State]) -> State:
    """Return the mean of weights and statistics; counters are those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
