"""What a model file says of itself, and what is wrong with one that says it badly."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_runtime.errors import ModelUnusable
from medtl_runtime.modelfile import (
    SCHEMA_VERSION,
    Description,
    IntendedUse,
    OperatingPoint,
    file_digest,
    probabilities,
)
from medtl_runtime.recipe import FixedWindow, Recipe
from medtl_runtime.testing import describe


def full() -> Description:
    """Return a description in which every field differs from its default."""
    return describe(
        name="liver",
        version="2.1",
        classes=("healthy", "läsion"),
        recipe=Recipe(
            size=(64, 96), channels=3, window=FixedWindow(centre=90, width=250), fit="crop"
        ),
        operating_point=OperatingPoint(
            rule="threshold", positive="läsion", threshold=0.25, chosen="val, Youden"
        ),
        temperature=1.7,
        intended_use=IntendedUse(modalities=("CT", "PT")),
        precision="int8",
        quantisation={"scheme": "QDQ", "kept": ["/stem"]},
        provenance={"run": "liver", "metrics": {"auroc": 0.91}},
        requires={"opset": 18},
    )


def document(**changes: Any) -> str:
    return json.dumps(json.loads(full().to_json()) | changes)


@pytest.mark.parametrize("one", [describe(), full(), describe(classes=("a", "b", "c"))])
def test_a_description_comes_back_from_its_document(one: Description) -> None:
    assert Description.from_json(one.to_json(), "m.onnx") == one


def test_the_document_says_its_schema_version_and_is_plain_json() -> None:
    data = json.loads(full().to_json())
    assert data["schema_version"] == SCHEMA_VERSION == 1
    assert data["classes"] == ["healthy", "läsion"]
    assert data["recipe"]["window"] == {"kind": "fixed", "centre": 90, "width": 250}


def test_equal_descriptions_give_equal_documents() -> None:
    assert full().to_json() == full().to_json()


@pytest.mark.parametrize(
    "text",
    ["", "no json", "{", "[]", "5", "null", '"text"', "{}", "[" * 100_000],
    ids=lambda text: text[:8] or "empty",
)
def test_what_is_no_medtl_document_is_called_so(text: str) -> None:
    with pytest.raises(ModelUnusable, match="not a medtl document"):
        Description.from_json(text, "m.onnx")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_named_with_the_one_that_is_read(version: Any) -> None:
    with pytest.raises(ModelUnusable, match=f"schema version {version}; this version .* reads 1"):
        Description.from_json(document(schema_version=version), "m.onnx")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Description)])
@pytest.mark.parametrize("value", [None, [], "odd", -1])
def test_a_field_of_another_type_is_refused_when_loading_and_not_when_inferring(
    field: str, value: Any
) -> None:
    right = {"name": "odd", "version": "odd", "precision": "odd", "quantisation": None}
    if field in right and value == right[field]:
        assert getattr(Description.from_json(document(**{field: value}), "m.onnx"), field) == value
        return
    with pytest.raises(ModelUnusable, match=r"m\.onnx is not a usable medtl model"):
        Description.from_json(document(**{field: value}), "m.onnx")


@pytest.mark.parametrize(
    "field",
    [
        field.name
        for field in dataclasses.fields(Description)
        if field.default is dataclasses.MISSING
    ],
)
def test_a_missing_field_is_named(field: str) -> None:
    data = json.loads(full().to_json())
    del data[field]
    with pytest.raises(ModelUnusable, match=f"malformed description .*{field}"):
        Description.from_json(json.dumps(data), "m.onnx")


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ModelUnusable, match=r"malformed description .*colour"):
        Description.from_json(document(colour="red"), "m.onnx")


def test_a_bad_recipe_is_named_by_its_field() -> None:
    recipe = full().recipe.to_json() | {"kernel": "nearest"}
    with pytest.raises(ModelUnusable, match="recipe kernel is nearest"):
        Description.from_json(document(recipe=recipe), "m.onnx")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([], "two or more"),
        (["one"], "two or more"),
        (["same", "same"], "two or more different"),
        ([1, 2], "expected names"),
    ],
)
def test_classes_are_two_or_more_different_names(classes: list, words: str) -> None:
    with pytest.raises(ModelUnusable, match=words):
        Description.from_json(document(classes=classes), "m.onnx")


@pytest.mark.parametrize(
    "point",
    [
        {"rule": "vote", "positive": None, "threshold": None, "chosen": ""},
        {"rule": "threshold", "positive": "lesion", "threshold": 0.5, "chosen": ""},
        {"rule": "threshold", "positive": "läsion", "threshold": None, "chosen": ""},
        {"rule": "threshold", "positive": "läsion", "threshold": "0.5", "chosen": ""},
        {"rule": "threshold", "positive": "läsion", "threshold": 1.5, "chosen": ""},
        {"rule": "threshold", "positive": "läsion", "threshold": float("nan"), "chosen": ""},
        {"rule": "argmax", "colour": "red"},
    ],
)
def test_an_operating_point_that_cannot_decide_is_refused(point: dict) -> None:
    with pytest.raises(ModelUnusable):
        Description.from_json(document(operating_point=point), "m.onnx")


def test_a_threshold_needs_two_classes() -> None:
    point = OperatingPoint(rule="threshold", positive="a", threshold=0.5)
    three = describe(classes=("a", "b", "c"), operating_point=point)
    with pytest.raises(ModelUnusable, match="threshold that fits no class"):
        Description.from_json(three.to_json(), "m.onnx")


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), "1"])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature: Any) -> None:
    with pytest.raises(ModelUnusable):
        Description.from_json(document(temperature=temperature), "m.onnx")


@pytest.mark.parametrize(
    "test",
    [
        {"seeds": [], "logits": [], "tolerance": 0.1},
        {"seeds": [1, 2], "logits": [[0, 1]], "tolerance": 0.1},
        {"seeds": [1], "logits": [[0, 1, 2]], "tolerance": 0.1},
        {"seeds": [1], "logits": [[0]], "tolerance": 0.1},
        {"seeds": [1, 2], "logits": [[0, 1], [2]], "tolerance": 0.1},
        {"seeds": [-1], "logits": [[0, 1]], "tolerance": 0.1},
        {"seeds": [2**32], "logits": [[0, 1]], "tolerance": 0.1},
        {"seeds": ["1"], "logits": [[0, 1]], "tolerance": 0.1},
        {"seeds": [1], "logits": [["a", "b"]], "tolerance": 0.1},
        {"seeds": [1], "logits": [[0, float("nan")]], "tolerance": 0.1},
        {"seeds": [1], "logits": [[0, 1]], "tolerance": -1},
        {"seeds": [1], "logits": [[0, 1]], "tolerance": float("inf")},
        {"seeds": [1], "logits": [[0, 1]]},
    ],
)
def test_a_self_test_that_could_not_fail_or_not_run_is_refused(test: dict) -> None:
    with pytest.raises(ModelUnusable):
        Description.from_json(document(self_test=test), "m.onnx")


# --- deciding


def test_argmax_takes_the_most_probable_class() -> None:
    point = OperatingPoint()
    assert point.decide(("a", "b", "c"), np.array([0.2, 0.5, 0.3])) == "b"


@pytest.mark.parametrize(
    ("probability", "finding"), [(0.1, "healthy"), (0.25, "lesion"), (0.9, "lesion")]
)
@pytest.mark.parametrize("classes", [("healthy", "lesion"), ("lesion", "healthy")])
def test_a_threshold_takes_the_positive_class_from_its_probability_on(
    classes: tuple[str, str], probability: float, finding: str
) -> None:
    point = OperatingPoint(rule="threshold", positive="lesion", threshold=0.25)
    chances = np.array([1 - probability, probability])
    if classes[0] == "lesion":
        chances = chances[::-1]
    assert point.decide(classes, chances) == finding


def test_probabilities_are_the_softmax_of_logits_over_temperature() -> None:
    found = probabilities(np.array([[0.0, np.log(3.0)], [5.0, 5.0]], np.float32), 1.0)
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]], atol=1e-7)
    assert found.dtype == np.float64
    warm = probabilities(np.array([0.0, np.log(3.0)]), 2.0)
    np.testing.assert_allclose(warm, [1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5)])


def test_large_logits_do_not_overflow() -> None:
    assert probabilities(np.array([1e4, -1e4, 0.0]), 0.1).tolist() == [1.0, 0.0, 0.0]


def test_the_digest_is_the_sha_256_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    assert file_digest(tmp_path / "m.onnx") == "sha256:" + hashlib.sha256(b"model").hexdigest()
