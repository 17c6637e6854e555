"""Quantisation-aware fine-tuning (QAT): weights that lose less when they are rounded to int8.

Weights and activations are rounded in the forward pass and gradients pass through the rounding
(Jacob et al., CVPR 2018; Nagel et al., "A white paper on neural network quantization", 2021). What
comes out is an ordinary network in float: the exporter traces it, calibrates it anew and writes QDQ
as for any other, so no scale that torchao has learned has to survive an export.

fold what the graph folds -> place fake quantisers -> calibrate -> fine-tune -> unfold
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_export.errors import QuantisationIncomplete
from medtl_export.graph import silenced
from medtl_export.qat_student import Sites, Student, quantised_sites, unfolded
from medtl_models.network import Network
from medtl_runtime.errors import ExtraMissing, UsageError
from medtl_runtime.heads import Head, columns_of
from medtl_runtime.recipe import as_batch
from medtl_train.data.images import ImageSet, spread
from medtl_train.data.splits import strata_of
from medtl_train.errors import Diverged
from medtl_train.fitting.feed import batches_an_epoch
from medtl_train.fitting.losses import class_costs, distillation_loss, step_costs, value_costs
from medtl_train.fitting.optimisation import learning_rate
from medtl_train.fitting.predict import predict_logits

__all__ = ["QatSettings", "Sites", "expect_nodes", "finetune", "is_available", "quantised_sites"]

_CALIBRATION_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class QatSettings:
    """How a network is fine-tuned.

    There is no augmentation: a few epochs at a low rate do not learn the images by heart, ranges
    have to be those of the images as they come, and the float network's outputs are computed once.

    Raises
    ------
    UsageError
        A value is out of its limits.
    """

    epochs: int = 4
    """In the last one, the ranges of the activations stay as they are."""
    lr: float = 1e-5
    """Of Adam, in the first step; it falls to 0 along half a cosine."""
    batch_size: int = 32
    distillation: float = 0.5
    """Share of the loss, 0 to 1, that is the distance from the float network's outputs (Hinton et
    al., 2015; Mishra and Marr, ICLR 2018; see `medtl_train.fitting.losses.distillation_loss`). The
    rest is what the labels say. It keeps temperatures and operating points valid, and says more of
    each image than its label does."""
    weight_bits: int = 8
    activation_bits: int = 8
    seed: int = 0
    """Of the order of the images."""

    def __post_init__(self) -> None:
        fine = {
            "epochs": self.epochs >= 1,
            "lr": self.lr > 0,
            "batch_size": self.batch_size >= 1,
            "distillation": 0 <= self.distillation <= 1,
            "weight_bits": 2 <= self.weight_bits <= 8,
            "activation_bits": 2 <= self.activation_bits <= 8,
        }
        for name in (name for name, holds in fine.items() if not holds):
            raise UsageError(f"QAT: {name} is {getattr(self, name)}, which is out of its limits")


def finetune(
    network: Network,
    train: ImageSet,
    heads: Sequence[Head],
    *,
    settings: QatSettings,
    device: torch.device,
    note: Callable[[str], None],
) -> Network:
    """Return a network that has been fine-tuned with rounded weights and activations.

    BatchNorm is folded into the convolution before it, as in the exported graph, and its statistics
    stay. On a CPU, the result is the same for the same seed.

    Parameters
    ----------
    network
        Stays as it is.
    train
        Training images; as float, one batch is in memory at a time.
    heads
        What the columns of the logits mean.
    note
        Is told what the fine-tuning brings.

    Returns
    -------
    A network of the same layout, on the same device, for evaluation. It computes what ``network``
    does if fine-tuning did not lower the loss of the rounded network.

    Raises
    ------
    ExtraMissing
        torchao is not installed.
    Diverged
        The loss is not a number.
    """
    if not is_available():
        raise ExtraMissing("torchao", extra="qat", purpose="--qat")
    logits = predict_logits(copy.deepcopy(network).to(device), train.pixels, device)
    student = Student(
        network, weight_bits=settings.weight_bits, activation_bits=settings.activation_bits
    ).to(device)
    before, after = _Finetuning(
        student=student,
        train=train,
        heads=tuple(heads),
        logits=torch.from_numpy(logits),
        settings=settings,
        device=device,
    ).run()
    gained = after < before
    note(
        f"quantisation-aware fine-tuning, {settings.epochs} epochs: loss of the rounded network "
        f"{before:.4g} to {after:.4g}{'' if gained else '; not lower, so the weights stay'}"
    )
    return unfolded(network, student) if gained else copy.deepcopy(network).eval()


def expect_nodes(model: onnx.ModelProto, sites: Sites) -> None:
    """Check that a QDQ graph computes exactly as many products in integers as were fine-tuned.

    A product is in integers if its weights are the DequantizeLinear of an int8 constant and its
    other input is the DequantizeLinear of a tensor.

    Raises
    ------
    QuantisationIncomplete
        There are fewer, or more.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    integers = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }

    def in_integers(node: onnx.NodeProto) -> bool:
        data, weight = (integers.get(name) for name in node.input[:2])
        stored = constants.get(weight or "")
        is_int8 = stored is not None and stored.data_type == onnx.TensorProto.INT8
        return is_int8 and data is not None and data not in constants

    wanted = {"Conv": sites.convolutions, "MatMul/Gemm": sites.linears}
    for kinds, expected in wanted.items():
        nodes = [node for node in model.graph.node if node.op_type in kinds.split("/")]
        found = sum(map(in_integers, nodes))
        if found != expected:
            in_float = ", ".join([n.name for n in nodes if not in_integers(n)][:5]) or "none"
            raise QuantisationIncomplete(
                f"the graph has {found} {kinds} in integers, expected {expected}; "
                f"in float are {in_float}"
            )


def is_available() -> bool:
    """Return whether torchao is installed and can be imported."""
    try:
        # It warns of extensions and enumerations that nothing here uses.
        with silenced("torchao"), silenced("torch.utils._pytree"):
            import torchao.quantization.pt2e  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class _Finetuning:
    """A student, what it learns from, and how."""

    student: Student
    train: ImageSet
    heads: tuple[Head, ...]
    logits: Tensor
    """Of the float network, N x the columns of all heads."""
    settings: QatSettings
    device: torch.device

    def run(self) -> tuple[float, float]:
        """Fine-tune the student; return its loss on calibration images before and after."""
        groups = strata_of(self.train.targets, self.heads).tolist()
        chosen = np.array(spread(groups, _CALIBRATION_IMAGES))
        parts = np.array_split(chosen, math.ceil(len(chosen) / self.settings.batch_size))
        self._calibrate(parts)
        before = self._mean_loss(parts)
        optimizer = torch.optim.Adam(self.student.parameters(), lr=self.settings.lr)
        for epoch in range(self.settings.epochs):
            self._train_epoch(epoch, optimizer)
        return before, self._mean_loss(parts)

    @torch.no_grad()
    def _calibrate(self, batches: list[NDArray[np.intp]]) -> None:
        """Set the ranges of activations: the average over batches, before they are rounded."""
        self.student.set_rounding(False)
        for index, batch in enumerate(batches):
            self.student.set_averaging(1 / (index + 1))
            self.student(self._images(batch))
        self.student.set_averaging()
        self.student.set_rounding(True)

    @torch.no_grad()
    def _mean_loss(self, batches: list[NDArray[np.intp]]) -> float:
        self.student.set_observing(False)
        total = sum(float(self._loss(batch)) * len(batch) for batch in batches)
        return total / sum(map(len, batches))

    def _train_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.train))
        count = batches_an_epoch(len(self.train), self.settings.batch_size)
        last = epoch == self.settings.epochs - 1
        self.student.set_observing(not last)
        for index, batch in enumerate(np.array_split(order, count)):
            step, steps = epoch * count + index, self.settings.epochs * count
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, self.settings.lr, warmup=0)
            loss = self._loss(batch)
            if not math.isfinite(float(loss.detach())):
                raise Diverged(
                    f"quantisation-aware fine-tuning: the loss is {float(loss.detach())} at step "
                    f"{index + 1} of epoch {epoch + 1}, with the learning rate {self.settings.lr:g}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _images(self, batch: NDArray[np.intp]) -> Tensor:
        return torch.from_numpy(as_batch(self.train.pixels[batch])).to(self.device)

    def _loss(self, batch: NDArray[np.intp]) -> Tensor:
        logits = self.student(self._images(batch))
        targets = torch.from_numpy(self.train.targets[batch]).float().to(self.device)
        taught = self.logits[batch].to(self.device)
        distance = distillation_loss(self.heads, logits, taught, temperature=1)
        share = self.settings.distillation
        return (1 - share) * labels_loss(self.heads, logits, targets) + share * distance


def labels_loss(heads: Sequence[Head], logits_nc: Tensor, targets_nh: Tensor) -> Tensor:
    """Return the mean over the heads of each one's loss; unknown targets, NaN, cost nothing."""
    losses = []
    of_heads = zip(heads, columns_of(heads), targets_nh.unbind(1), strict=True)
    for head, columns, targets in of_heads:
        own = logits_nc[:, columns]
        if head.kind == "regression":
            found = value_costs(own[:, 0], targets, head, "mse")
        else:
            found = (class_costs if head.kind == "multiclass" else step_costs)(own, targets)
        losses.append(found.costs.sum() / found.counts.sum().clamp(min=1))
    return torch.stack(losses).mean()
