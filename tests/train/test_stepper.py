"""A step in parts is the step; what does not fit is cut or refused with the size that does."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from medtl_models.network import Network
from medtl_train.config import SpeedConfig
from medtl_train.errors import MemoryTooSmall
from medtl_train.fitting.feed import Batch
from medtl_train.fitting.memory import parts_that_fit, tried
from medtl_train.fitting.precision import place
from medtl_train.fitting.stepper import Forward, Losses, Stepper

CPU = torch.device("cpu")


def network(arch: str = "squeezenet1_1") -> Network:
    torch.manual_seed(0)
    return Network(arch, logits=1, channels=1, head="linear", dropout=0.0).train()


def batch(count: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(count, 1, generator=generator)
    targets[::3] = math.nan
    return Batch(images=torch.rand(count, 1, 32, 32, generator=generator), targets=targets)


def objective(forward: Forward, part: Batch) -> Tensor:
    """Return the mean squared error of what is known, and a penalty for each image."""
    logits = forward(part.images).logits
    known = part.targets.isfinite()
    error = (logits - part.targets.nan_to_num(0)).square()[known].mean()
    share = 1.0 if part.known is None else part.known[0]
    return share * error + part.fraction * logits.square().mean()


def gradient(of: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in of.parameters() if p.grad is not None])


def stepper(of: Network, **speed: object) -> Stepper:
    return Stepper(of, CPU, SpeedConfig(**speed))


def test_a_step_is_forward_and_backward_to_the_bit() -> None:
    plain, stepped = network(), network()
    value = objective(plain, batch())
    value.backward()
    found = stepper(stepped).backward(batch(), objective)
    assert torch.equal(found, value.detach())
    assert not found.requires_grad
    assert torch.equal(gradient(stepped), gradient(plain))


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_parts_have_the_gradient_of_the_whole(parts: int) -> None:
    plain, cut = network(), network()
    whole = stepper(plain).backward(batch(), objective)
    one = stepper(cut)
    one.parts = parts
    found = one.backward(batch(), objective)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(gradient(cut), gradient(plain), atol=1e-6, rtol=1e-3)


def test_mixed_precision_gives_logits_of_float32_near_those_of_full_precision() -> None:
    seen = []

    def noting(forward: Forward, part: Batch) -> Tensor:
        seen.append(forward(part.images).logits)
        return seen[-1].square().mean()

    full, mixed = network(), network()
    stepper(full).backward(batch(), noting)
    stepper(mixed, precision="bf16").backward(batch(), noting)
    assert seen[0].dtype == seen[1].dtype == torch.float32
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[0], seen[1], atol=0.05, rtol=0.05)
    cosine = torch.cosine_similarity(gradient(full), gradient(mixed), dim=0)
    assert float(cosine) > 0.99


@contextmanager
def small_memory(of: Network, images: int) -> Iterator[list[int]]:
    """Let a network take so many images at most; yield how many it was given, each time."""
    given = []

    def refuse(_: nn.Module, arguments: tuple[Tensor]) -> None:
        given.append(len(arguments[0]))
        if given[-1] > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = of.register_forward_pre_hook(refuse)
    yield given
    hook.remove()


def test_a_step_that_does_not_fit_is_refused_with_the_size_that_does() -> None:
    of = network()
    with small_memory(of, 3), pytest.raises(MemoryTooSmall) as refused:
        stepper(of).backward(batch(), objective)
    assert str(refused.value).startswith("a step of 12 images does not fit into the GPU's memory")
    assert "--batch-size 3 does, and --batch-size auto takes the same steps in parts" in str(
        refused.value
    )


def test_an_automatic_step_is_cut_until_it_fits_and_is_the_same_step() -> None:
    plain, cut = network(), network()
    whole = stepper(plain).backward(batch(), objective)
    one = stepper(cut)
    one.parts = None  # as on a GPU with --batch-size auto
    with small_memory(cut, 3) as given:
        found = one.backward(batch(), objective)
        assert given == [12, 6, 3, 3, 3, 3, 3]  # three trials, then the step
        one.backward(batch(), objective)
        assert given[7:] == [3, 3, 3, 3]
    torch.testing.assert_close(found, whole)


def test_too_little_memory_for_two_images_is_an_error() -> None:
    of = network()
    one = stepper(of)
    one.parts = None
    with small_memory(of, 1), pytest.raises(MemoryTooSmall, match="not even 2 images fit"):
        one.backward(batch(), objective)


def test_other_failures_are_not_taken_for_memory() -> None:
    def attempt(parts: int) -> None:
        raise RuntimeError(f"{parts} parts")

    with pytest.raises(RuntimeError, match="1 parts"):
        parts_that_fit(attempt, 8)


def test_a_trial_leaves_no_trace() -> None:
    of = network("mobilenet_v3_small")
    of.backbone.eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in of.state_dict().items()}
    flags = [module.training for module in of.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with tried(of, CPU):
        assert all(parameter.requires_grad for parameter in of.parameters())
        of(torch.rand(4, 1, 32, 32)).logits.sum().backward()
        assert not torch.equal(
            of.state_dict()["backbone.features.0.1.running_mean"],
            before["backbone.features.0.1.running_mean"],
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in of.state_dict().items())
    assert [module.training for module in of.modules()] == flags
    assert all(parameter.grad is None for parameter in of.parameters())
    assert not any(parameter.requires_grad for parameter in of.backbone.parameters())
    assert torch.equal(torch.rand(2), expected)


def test_losses_have_a_mean_and_name_the_first_step_that_broke() -> None:
    losses = Losses(CPU)
    for value in (1.0, 3.0):
        losses.add(torch.tensor(value))
    assert losses.mean() == 2.0
    assert losses.broken is None
    for value in (math.inf, math.nan):
        losses.add(torch.tensor(value))
    assert losses.broken == (3, math.inf)


def test_a_loss_on_a_gpu_is_looked_at_now_and_then_and_at_the_end() -> None:
    losses = Losses(torch.device("cuda"))
    for step in range(49):
        losses.add(torch.tensor(math.nan if step == 30 else 0.0))
    assert losses.broken is None
    losses.add(torch.tensor(0.0))
    assert losses.broken is not None
    assert losses.broken[0] == 31
    late = Losses(torch.device("cuda"))
    late.add(torch.tensor(math.nan))
    assert math.isnan(late.mean())
    assert late.broken is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_in_channels_last() -> None:
    of = network("resnet18")
    place(of, torch.device("cuda"))
    one = Stepper(of, torch.device("cuda"), SpeedConfig())
    given = batch()
    moved = Batch(images=given.images.to("cuda"), targets=given.targets.to("cuda"))
    assert math.isfinite(float(one.backward(moved, objective)))
    weight = of.get_parameter("backbone.layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
