"""Options that the network or the heads leave without effect are refused."""

from typing import Any

import pytest

from medtl_models.network import Network
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, width
from medtl_train.fitting.applicable import require_applicable
from medtl_train.options import config_from

SIDE = Head(name="side", classes=("left", "right"))
GRADE = Head(name="grade", kind="ordinal", classes=("0", "1", "2"))
SIZE = Head(name="size", kind="regression")


def require(
    heads: tuple[Head, ...],
    arch: str = "mobilenet_v3_small",
    *,
    pretrained: bool = True,
    **options: Any,
) -> None:
    network = Network(arch, logits=width(heads), channels=1, head="linear", dropout=0.0)
    require_applicable(config_from(options), network, heads, pretrained=pretrained)


@pytest.mark.parametrize(
    ("heads", "options", "words"),
    [
        ((SIZE,), {"label_smoothing": 0.1}, "--label-smoothing 0.1 has no effect: there is no"),
        ((SIZE,), {"imbalance": "sampling"}, "--imbalance sampling has no effect"),
        ((SIZE,), {"focal": 2.0}, "--focal 2 has no effect"),
        ((SIZE,), {"monitor": "auroc"}, "--monitor auroc has no effect: there is no head with"),
        ((SIDE, GRADE), {"monitor": "r2"}, "--monitor r2 has no effect: there is no regression"),
        ((SIDE,), {"monitor": "quadratic_weighted_kappa"}, "there is no head with grades"),
        ((SIDE,), {"regression_loss": "huber"}, "--regression-loss huber has no effect"),
        ((SIDE,), {"head_weights": "uncertainty"}, "has no effect: side is the only head"),
        ((SIDE,), {"mode": "features", "imbalance": "sampling"}, "class-weights only"),
    ],
)  # fmt: skip
def test_what_no_head_can_use_is_refused(heads: tuple, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        require(heads, **options)


@pytest.mark.parametrize(
    ("arch", "pretrained", "options", "words"),
    [
        ("squeezenet1_1", True, {"batch_norm": "frozen"}, "squeezenet1_1 has no BatchNorm"),
        ("squeezenet1_1", True, {"batch_norm": "auto"}, "squeezenet1_1 has no BatchNorm"),
        ("resnet18", False, {"batch_norm": "frozen"}, "there are no statistics to keep"),
        ("resnet18", False, {"freeze": "1"}, "--freeze 1 has no effect: the backbone is not"),
        ("resnet18", False, {"mode": "gradual"}, "--mode gradual has no effect"),
        ("resnet18", True, {"head": "mlp"}, "cannot be solved for; add --mode head-then-all"),
    ],
)
def test_what_the_network_cannot_use_is_refused(
    arch: str, pretrained: bool, options: dict, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        require((SIDE,), arch, pretrained=pretrained, **options)


@pytest.mark.parametrize(
    ("heads", "options"),
    [
        ((SIDE,), {}),
        ((SIZE,), {"regression_loss": "huber", "monitor": "mae", "label_smoothing": 0.0}),
        ((GRADE,), {"monitor": "quadratic_weighted_kappa", "imbalance": "class-weights"}),
        ((SIDE, SIZE), {"monitor": "auroc", "head_weights": "size=2", "focal": 1.0}),
        ((SIDE,), {"batch_norm": "frozen", "freeze": "stage1", "imbalance": "logit-adjustment"}),
    ],
)
def test_what_has_an_effect_is_taken(heads: tuple, options: dict) -> None:
    require(heads, **options)
