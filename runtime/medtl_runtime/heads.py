"""What a model answers: a head for each question, with its own columns of the logits."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import UsageError

Kind = Literal["multiclass", "binary", "ordinal", "regression"]

# What acts on a terminal instead of being shown: control characters, breaks of lines, marks that
# turn the direction of what follows; and surrogates, which cannot be written at all.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# A unit is a Code Value in DICOM (PS3.3 8.2), and no backslash may stand there (PS3.5 6.2).
_UNIT = re.compile(r"[!-\[\]-~]{0,16}")


@dataclass(frozen=True, kw_only=True)
class Head:
    """One question, and what its columns of the logits mean.

    ========== ========================== ======= =================================================
    kind       classes                    columns probabilities
    ========== ========================== ======= =================================================
    multiclass K alternatives             K       softmax of the columns
    binary     (absent, present)          1       sigmoid of the column is that of the second class
    ordinal    K grades, the lowest first K - 1   column k is the logit of lying above grade k, of
                                                  those that do not lie below it (CORN; Shi, Cao and
                                                  Raschka, Pattern Analysis and Applications 2023)
    regression none                       1       none: the value is ``mean + std * column``
    ========== ========================== ======= =================================================

    Several findings that may occur together (multi-label) are so many binary heads.
    """

    name: str
    kind: Kind = "multiclass"
    classes: tuple[str, ...] = ()
    unit: str = ""
    """Of a regression's values, in UCUM; at most 16 printable ASCII characters, empty for none."""
    mean: float = 0.0
    std: float = 1.0
    """Of the training values of a regression; more than 0."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            expected = ", ".join(get_args(Kind))
            raise UsageError(f"head {self.name} is {self.kind}; expected {expected}")
        for word, text in (("name", self.name), *(("class", one) for one in self.classes)):
            _check_text(word, text)
        if self.kind == "regression":
            _check_regression(self)
        else:
            _check_classes(self)

    @property
    def columns(self) -> int:
        """How many columns of the logits are the head's."""
        return {
            "multiclass": len(self.classes),
            "binary": 1,
            "ordinal": len(self.classes) - 1,
            "regression": 1,
        }[self.kind]

    def probabilities(
        self, logits: NDArray[np.floating], temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Return the probabilities of the classes, in double precision; they add up to 1.

        Parameters
        ----------
        logits
            The head's columns, ... x ``columns``; those of a regression have no probabilities.
        temperature
            The logits are divided by it (Guo et al., ICML 2017).

        Returns
        -------
        ... x K
        """
        assert self.kind != "regression"
        scaled = np.asarray(logits, np.float64) / temperature
        if self.kind == "multiclass":
            shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
            return shifted / shifted.sum(axis=-1, keepdims=True)
        # Both sides of each step, so that small probabilities keep their digits.
        above, not_above = _sigmoid(scaled), _sigmoid(-scaled)
        ones = np.ones((*scaled.shape[:-1], 1))
        reached = np.concatenate([ones, np.cumprod(above, axis=-1)], axis=-1)
        return reached * np.concatenate([not_above, ones], axis=-1)

    def values(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the values of a regression, in its unit: of shape ``...`` for ``... x 1``."""
        assert self.kind == "regression"
        return self.mean + self.std * np.asarray(logits, np.float64)[..., 0]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `from_json` is its inverse."""
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Head":
        """Read what `to_json` wrote.

        Raises
        ------
        UsageError
            A field is missing, unknown, or makes no sense.
        """
        try:
            return Head(**{**data, "classes": tuple(data["classes"])})
        except (KeyError, TypeError, ValueError) as cause:
            raise UsageError(f"malformed head ({cause})") from cause


def _check_text(word: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise UsageError(f"a head's {word} is {text!r}; expected a name")
    if CONTROL.search(text):
        raise UsageError(f"a head's {word} is {text!a}, with a control character")


def _check_classes(head: Head) -> None:
    names = head.classes
    if len(set(names)) != len(names):
        raise UsageError(f"head {head.name}: its classes are {names}; expected different names")
    if head.unit or (head.mean, head.std) != (0, 1):
        raise UsageError(f"head {head.name} is {head.kind}; only a regression has a unit and scale")
    if len(names) < 2 or (head.kind == "binary" and len(names) > 2):
        expected = "two" if head.kind == "binary" else "two or more"
        raise UsageError(f"head {head.name}: its classes are {names}; expected {expected}")


def _check_regression(head: Head) -> None:
    if head.classes:
        raise UsageError(f"head {head.name} is a regression; it has no classes")
    if not isinstance(head.unit, str) or not _UNIT.fullmatch(head.unit):
        expected = "at most 16 printable ASCII characters without a backslash"
        raise UsageError(f"head {head.name}: its unit is {head.unit!a}; expected {expected}")
    if not (math.isfinite(head.mean) and 0 < head.std < math.inf):
        found = f"mean {head.mean} and standard deviation {head.std}"
        raise UsageError(f"head {head.name}: {found}; expected numbers, the second above 0")


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    smaller = np.exp(-np.abs(values))  # never overflows
    return np.where(values >= 0, 1, smaller) / (1 + smaller)


def check_heads(heads: Sequence[Head]) -> None:
    """Raise `UsageError` where there are none, or two have the same name."""
    names = [head.name for head in heads]
    if not names:
        raise UsageError("no heads; a model answers one question or more")
    if len(set(names)) != len(names):
        raise UsageError(f"its heads are {', '.join(names)}; expected different names")


def find_head(heads: Sequence[Head], name: str) -> Head:
    """Return a head by its name.

    Raises
    ------
    UsageError
        There is none.
    """
    for head in heads:
        if head.name == name:
            return head
    expected = ", ".join(head.name for head in heads)
    raise UsageError(f"--head {name}: the model has no such head; expected {expected}")


def columns_of(heads: Sequence[Head]) -> tuple[slice, ...]:
    """Return which columns of the logits are each head's; they follow each other."""
    ends = accumulate((head.columns for head in heads), initial=0)
    return tuple(slice(start, end) for start, end in pairwise(ends))


def width(heads: Sequence[Head]) -> int:
    """Return how many columns the logits of all heads have."""
    return sum(head.columns for head in heads)
