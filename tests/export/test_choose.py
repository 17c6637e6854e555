from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_export.choose import Chosen, Question, choose
from medtl_export.compare import Outputs, Validation
from medtl_export.errors import QuantisedWorse
from medtl_export.gate import Gate
from medtl_export.settings import Quantising
from medtl_export.targets import TARGETS
from medtl_runtime.decision import plain_decision
from medtl_runtime.heads import Head


def test_a_student_that_is_worse_than_its_teacher_is_refused_before_it_is_quantised() -> None:
    labels = np.arange(60) % 2
    taught = np.where(np.eye(2)[labels] > 0, 1.0, -1.0).astype(np.float32)
    guessed = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    heads = (Head(name="label", classes=("healthy", "lesion")),)
    validation = Validation(
        heads=heads,
        targets=labels[:, None].astype(float),
        patients=np.arange(60).astype(str),
        decision=plain_decision(heads),
    )
    gate = Gate(
        reference=validation.judged(taught),
        validation=validation,
        metric="auroc",
        max_drop=0.005,
    )
    nothing: Any = None
    question = Question(
        run=Path("runs/liver"),
        about=nothing,
        network=nothing,
        floating=Chosen(
            model=nothing,
            session=nothing,
            outputs=Outputs(logits=guessed, embeddings=guessed, map_gap=0.0),
            precision="fp32",
        ),
        gate=gate,
        train=nothing,
        validation=nothing,
        target=TARGETS["cpu"],
        settings=Quantising(),
    )
    with pytest.raises(
        QuantisedWorse, match=r"loses more than --max-drop 0\.005 auroc before it is"
    ):
        choose(question, lambda _: None)
