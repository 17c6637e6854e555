"""What a model file says of itself, and what is wrong with one that says it badly."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision, HeadDecision, NoveltyCutoffs, OperatingPoint, Triage
from medtl_runtime.errors import ModelUnusable
from medtl_runtime.heads import Head
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import SCHEMA_VERSION, Description, file_digest
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.recipe import FixedWindow, Recipe
from medtl_runtime.testing import describe

DECISION = Decision(
    heads=(
        HeadDecision(
            temperature=1.7,
            operating_point=OperatingPoint(
                rule="threshold", positive="läsion", threshold=0.25, chosen="val, Youden"
            ),
            triage=Triage(error_rate=0.1, thresholds=(0.2, 0.4), images=90),
        ),
    ),
    novelty=NoveltyCutoffs(energy=1.5, mahalanobis=40.0, false_refusal_rate=0.02, images=90),
)


def reference() -> EmbeddingReference:
    return EmbeddingReference(
        means=np.array([[0.5, -1, 0.1], [2, 0, 1 / 3]], np.float32),
        directions=np.array([[0.6, 0.8, 0]], np.float32),
        variances=np.array([4], np.float32),
        residual=0.3,
        images=200,
    )


def full(**changes: Any) -> Description:
    """Return a description in which every field differs from its default."""
    fields: dict[str, Any] = {
        "name": "liver",
        "version": "2.1",
        "classes": ("healthy", "läsion"),
        "recipe": Recipe(
            size=(64, 96), channels=3, window=FixedWindow(centre=90, width=250), fit="crop"
        ),
        "decision": DECISION,
        "aggregation": Aggregation(rule="top-k-mean", k=3),
        "intended_use": IntendedUse(rules=(Rule(attribute="Modality", values=("CT", "PT")),)),
        "precision": "int8",
        "quantisation": {"scheme": "QDQ", "kept": ["/stem"]},
        "provenance": {"run": "liver", "metrics": {"auroc": 0.91}},
        "requires": {"opset": 18},
    }
    return describe(**(fields | changes))


def document(**changes: Any) -> str:
    return json.dumps(json.loads(full(embedding_reference=reference()).to_json()) | changes)


FOUR = describe(
    heads=(
        Head(name="liver", classes=("cyst", "healthy", "tumour")),
        Head(name="oedema", kind="binary", classes=("absent", "present")),
        Head(name="grade", kind="ordinal", classes=("1", "2", "3", "4")),
        Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
    )
)
WITHOUT_NOVELTY = dataclasses.replace(DECISION, novelty=None)


@pytest.mark.parametrize(
    "one", [describe(), full(decision=WITHOUT_NOVELTY), describe(classes=("a", "b", "c")), FOUR]
)
def test_a_description_comes_back_from_its_document(one: Description) -> None:
    assert Description.from_json(one.to_json(), "m.onnx") == one


def test_the_embedding_reference_comes_back_bit_for_bit() -> None:
    one = full(embedding_reference=reference())
    found = Description.from_json(one.to_json(), "m.onnx").embedding_reference
    assert found is not None
    for name in ("means", "directions", "variances"):
        np.testing.assert_array_equal(getattr(found, name), getattr(reference(), name))
    assert (found.residual, found.images) == (0.3, 200)


def test_the_document_says_its_schema_version_and_is_plain_json() -> None:
    data = json.loads(full().to_json())
    assert data["schema_version"] == SCHEMA_VERSION == 4
    assert [head["classes"] for head in data["heads"]] == [["healthy", "läsion"]]
    assert data["recipe"]["window"] == {"kind": "fixed", "centre": 90, "width": 250}
    assert data["aggregation"] == {"rule": "top-k-mean", "k": 3}
    assert data["decision"]["heads"][0]["temperature"] == 1.7
    assert data["embedding_reference"] is None


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


@pytest.mark.parametrize("version", [0, 1, 3, 5, "4", None])
def test_another_schema_version_is_named_with_the_one_that_is_read(version: Any) -> None:
    with pytest.raises(ModelUnusable, match=f"schema version {version}; this version .* reads 4"):
        Description.from_json(document(schema_version=version), "m.onnx")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Description)])
@pytest.mark.parametrize("value", [None, [], "odd", -1])
def test_a_field_of_another_type_is_refused_when_loading_and_not_when_inferring(
    field: str, value: Any
) -> None:
    right = {"name": "odd", "version": "odd", "target": "odd", "precision": "odd"} | {
        "quantisation": None
    }
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
        (["same", "same"], "expected different names"),
        ([1, 2], "class is 1; expected a name"),
        (["", "b"], "class is ''; expected a name"),
    ],
)
def test_classes_are_two_or_more_different_names(classes: list, words: str) -> None:
    with pytest.raises(ModelUnusable, match=words):
        Description.from_json(changed("heads.0.classes", classes), "m.onnx")


@pytest.mark.parametrize("field", ["name", "version", "target", "precision", "classes", "head"])
@pytest.mark.parametrize(
    "character", ["\x1b", "\n", "\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\ud800"]
)
def test_texts_that_would_act_on_a_terminal_are_refused(field: str, character: str) -> None:
    text = f"li{character}ver"
    given = {
        "classes": lambda: changed("heads.0.classes", ["healthy", text]),
        "head": lambda: changed("heads.0.name", text),
    }.get(field, lambda: document(**{field: text}))()
    with pytest.raises(ModelUnusable, match="control character") as error:
        Description.from_json(given, "m.onnx")
    assert character not in str(error.value)


def test_texts_in_any_script_are_names() -> None:
    for text in ("肝臓", "کبد\N{ZERO WIDTH NON-JOINER}ها", "foie\N{NO-BREAK SPACE}gras", "läsion"):
        assert Description.from_json(document(name=text), "m.onnx").name == text


HUGE = 10**400  # a number in JSON that no float holds


def changed(path: str, value: Any) -> str:
    """Return the document with one field, by its dotted path, replaced."""
    data = json.loads(document())
    *parents, last = path.split(".")
    inner = data
    for name in parents:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("decision.heads.0.temperature", 0, "temperature is 0"),
        ("decision.heads.0.temperature", float("nan"), "temperature is nan"),
        ("decision.heads.0.temperature", "1", "malformed decision"),
        ("decision.heads.0.temperature", HUGE, "malformed decision"),
        ("decision.heads.0.operating_point.rule", "vote", "rule is vote"),
        (
            "decision.heads.0.operating_point.positive",
            "lesion",
            "positive is lesion; expected a class",
        ),
        ("decision.heads.0.operating_point.positive", ["läsion"], "expected a class"),
        ("decision.heads.0.operating_point.positive", None, "fits no class"),
        ("decision.heads.0.operating_point.threshold", None, "fits no class"),
        ("decision.heads.0.operating_point.threshold", "0.25", "fits no class"),
        ("decision.heads.0.operating_point.threshold", 1.5, "fits no class"),
        ("decision.heads.0.operating_point.threshold", float("nan"), "fits no class"),
        ("decision.heads.0.operating_point.threshold", HUGE, "fits no class"),
        ("decision.heads.0.operating_point.colour", "red", "colour"),
        ("decision.heads.0.triage.thresholds", [0.2], "expected one of 0 to 1 each"),
        ("decision.heads.0.triage.thresholds", 0.2, "malformed decision"),
        ("decision.heads.0.triage.error_rate", 2, "error_rate is 2"),
        ("decision.heads.0.triage.images", "many", "fitted on many images"),
        ("decision.heads.0.triage.images", 0, "fitted on 0 images"),
        ("decision.novelty.energy", float("inf"), "novelty energy is inf"),
        ("decision.novelty.mahalanobis", HUGE, "novelty mahalanobis is 1000"),
        ("decision.novelty.mahalanobis", "far", "novelty mahalanobis is far"),
        ("decision.novelty.images", None, "fitted on None images"),
        ("decision.surprise", 1, "unknown fields: surprise"),
        ("decision.heads", [], "decision about 0 heads; the model has 1"),
        ("heads", [], "no heads; a model answers one question or more"),
        ("heads.0.kind", "guess", "head label is guess; expected multiclass"),
        ("heads.0.unit", "kg", "only a regression has a unit"),
        ("heads.0.colour", "red", "malformed head"),
        ("aggregation.rule", "median", "aggregation is median"),
        ("aggregation.rule", ["max"], "aggregation"),
        ("aggregation.k", None, "k is None; expected 1 or more"),
        ("aggregation.depth", 2, "depth"),
        ("embedding_reference.residual", 0, "do not fit each other"),
        ("embedding_reference.residual", HUGE, "malformed embedding reference"),
        ("embedding_reference.images", None, "malformed embedding reference"),
        ("embedding_reference.means", {"shape": [2, 3], "float32": "AAAA"}, "malformed embedding"),
        ("embedding_reference.directions", {"shape": [1, 3], "float32": "?"}, "malformed embedd"),
        ("embedding_reference.variances", {"shape": [-1], "float32": ""}, "malformed embedding"),
        ("embedding_reference.variances", {"shape": [0], "float32": ""}, "do not fit each other"),
        ("intended_use.rules", [{"attribute": "PatientName"}], "unknown attribute"),
        ("intended_use.rules", [{}], "without an attribute"),
        ("intended_use.modalities", ["CT"], "malformed intended use"),
        ("self_test.tolerance", HUGE, "malformed description"),
        ("self_test.seeds", [HUGE], "self-test seeds"),
        ("recipe.size", [HUGE, 32], "recipe size"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_when_loading_by_name(
    path: str, value: Any, words: str
) -> None:
    with pytest.raises(ModelUnusable, match=words) as error:
        Description.from_json(changed(path, value), "m.onnx")
    assert str(error.value).startswith("m.onnx is not a usable medtl model: ")


@pytest.mark.parametrize("path", ["decision.heads.0.triage", "decision.novelty", "quantisation"])
def test_what_is_optional_may_be_null(path: str) -> None:
    assert Description.from_json(changed(path, None), "m.onnx").name == "liver"


def test_cutoffs_without_a_reference_could_never_refuse_and_are_refused() -> None:
    with pytest.raises(ModelUnusable, match="novelty cut-offs without an embedding reference"):
        Description.from_json(document(embedding_reference=None), "m.onnx")


def test_two_heads_of_one_name_could_not_be_told_apart() -> None:
    data = json.loads(full().to_json())
    data["heads"] *= 2
    with pytest.raises(ModelUnusable, match="its heads are label, label; expected different"):
        Description.from_json(json.dumps(data), "m.onnx")


def test_a_threshold_needs_two_classes() -> None:
    point = OperatingPoint(rule="threshold", positive="a", threshold=0.5)
    three = describe(
        classes=("a", "b", "c"), decision=Decision(heads=(HeadDecision(operating_point=point),))
    )
    with pytest.raises(ModelUnusable, match="threshold that fits no class"):
        Description.from_json(three.to_json(), "m.onnx")


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


def test_the_digest_is_the_sha_256_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    assert file_digest(tmp_path / "m.onnx") == "sha256:" + hashlib.sha256(b"model").hexdigest()
