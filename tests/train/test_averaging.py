"""Averages of weights are those of their formulas."""

import copy

import pytest
import torch

from medtl_models.network import Network
from medtl_train.fitting.averaging import (
    Candidate,
    MovingAverage,
    best_candidates,
    greedy_soup,
    mean_state,
)

STEM = "backbone.features.0.0.weight"


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network("mobilenet_v3_small", logits=2, channels=1, head="linear", dropout=0.0)


def moved(network: Network, value: float) -> None:
    """Set all weights and statistics to ``value``."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(value)


def averaged(network: Network, decay: float, values: list[float]) -> MovingAverage:
    average = MovingAverage(network, decay)
    for value in values:
        moved(network, value)
        average.update(network)
    return average


def test_the_average_is_the_one_computed_by_hand(network: Network) -> None:
    # Shares of the way: 9/9, 9/10, 9/11 until 1 - 0.2 is more.
    found = averaged(network, 0.2, [10.0, 20.0, 30.0, 50.0])
    expected = 10.0
    for value, share in ((20.0, 0.9), (30.0, 9 / 11), (50.0, 0.8)):
        expected += share * (value - expected)
    state = found.network.state_dict()
    assert state[STEM].flatten()[0].item() == pytest.approx(expected, rel=1e-6)
    assert state["backbone.features.0.1.running_var"][0].item() == pytest.approx(expected, rel=1e-6)
    assert state["backbone.features.0.1.num_batches_tracked"].item() == 50


def test_where_it_began_is_forgotten(network: Network) -> None:
    moved(network, 1e6)
    assert averaged(network, 0.999, [1.0]).network.state_dict()[STEM].unique().tolist() == [1.0]


def test_after_many_steps_it_decays_at_the_given_rate(network: Network) -> None:
    average = averaged(network, 0.9, [0.0] * 100)
    moved(network, 1.0)
    average.update(network)
    assert average.network.state_dict()[STEM].flatten()[0].item() == pytest.approx(0.1)


def test_the_network_is_not_touched_and_the_average_is_in_evaluation(network: Network) -> None:
    network.train()
    average = averaged(network, 0.9, [1.0, 2.0])
    assert (network.state_dict()[STEM] == 2).all()
    assert network.training
    assert not any(module.training for module in average.network.modules())
    assert not any(p.requires_grad for p in average.network.parameters())


def test_it_goes_on_from_its_state(network: Network) -> None:
    through = averaged(copy.deepcopy(network), 0.99, [1.0, 2.0, 3.0, 4.0])
    first = averaged(network, 0.99, [1.0, 2.0])
    second = MovingAverage(network, 0.99)
    second.load(first.state())
    for value in (3.0, 4.0):
        moved(network, value)
        second.update(network)
    one, other = through.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def candidate(epoch: int, score: float, value: float) -> Candidate:
    state = {"w": torch.tensor([value]), "n": torch.tensor(epoch)}
    return Candidate(epoch=epoch, score=(score, 0.0), state=state)


def test_the_best_are_kept_and_of_equals_the_earlier() -> None:
    some = [candidate(epoch, score, 0.0) for epoch, score in ((3, 0.7), (1, 0.9), (2, 0.9))]
    assert [one.epoch for one in best_candidates(some, 2)] == [1, 2]


def test_a_mean_state_is_the_mean_and_keeps_types() -> None:
    found = mean_state([candidate(1, 0, 1.0).state, candidate(2, 0, 4.0).state])
    assert found["w"].tolist() == [2.5]
    assert found["w"].dtype == torch.float32
    assert found["n"].item() == 1


def test_the_greedy_soup_takes_what_does_not_hurt() -> None:
    # Best is 5: (6 + 4) / 2 is, with 9 it is not, and with 5 it is again.
    some = [
        candidate(k, s, v)
        for k, s, v in ((1, 0.9, 6.0), (2, 0.8, 4.0), (3, 0.7, 9.0), (4, 0.6, 5.0))
    ]

    def score_of(state: dict) -> tuple[float, float]:
        return 1 - abs(float(state["w"]) - 5) / 10, 0.0

    state, epochs, score = greedy_soup(some, score_of)
    assert epochs == (1, 2, 4)
    assert state["w"].item() == 5
    assert score == (1.0, 0.0)


def test_a_soup_of_one_is_the_best_itself() -> None:
    some = [candidate(1, 0.5, 1.0), candidate(2, 0.9, 2.0)]
    state, epochs, score = greedy_soup(some, lambda _: (0.1, 0.0))
    assert (epochs, score, state["w"].item()) == ((2,), (0.9, 0.0), 2.0)
