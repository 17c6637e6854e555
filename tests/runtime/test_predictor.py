"""From a scan to a finding."""

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision, HeadDecision, NoveltyCutoffs, OperatingPoint, Triage
from medtl_runtime.errors import (
    ModelNotFound,
    ModelUnusable,
    ScanError,
    ScanNotFound,
    ScanNovel,
    ScanOutOfScope,
    ScanUnfit,
    ScanUnreadable,
    SiteFileUnusable,
)
from medtl_runtime.images import scan_of_array
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import file_digest
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe, as_batch
from medtl_runtime.results import CaseResult, Failure, Result
from medtl_runtime.scan import Header, Position, Scan
from medtl_runtime.series import Case, group
from medtl_runtime.site import site_path, write_site
from medtl_runtime.testing import FakeEngine, describe

Real = Callable[[str], Path]
MakeModel = Callable[..., Path]

BLACK = np.zeros((8, 8), np.uint8)
WHITE = np.full((8, 8), 255, np.uint8)

AT_LEAST_HALF = OperatingPoint(rule="threshold", positive="positive", threshold=0.5)


def only(*modalities: str, missing: str = "allow") -> IntendedUse:
    rule = Rule(attribute="Modality", values=modalities, missing=missing)  # type: ignore[arg-type]
    return IntendedUse(rules=(rule,))


def brightness(images: np.ndarray) -> np.ndarray:
    """Return logits (0, mean), so that a brighter image is more positive."""
    means = images.mean(axis=(1, 2, 3))
    return np.stack([np.zeros_like(means), means], axis=1)


def test_a_path_a_data_set_and_an_array_of_one_scan_give_one_result(shipped: Path) -> None:
    path = shipped / "SC_rgb_small_odd.dcm"
    recipe = Recipe(size=(16, 16), channels=3, window=HeaderVoi())
    predictor = Predictor(engine=FakeEngine(describe(recipe=recipe)))
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    results = predictor([path, str(path), dataset, pixels])
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result.logits, results[0].logits)
        np.testing.assert_array_equal(result.canonical.pixels, results[0].canonical.pixels)
    assert [r.scan for r in results] == [str(path), str(path), "dataset", "array"]
    uid = str(dataset.SOPInstanceUID)
    assert [r.sop_instance_uid for r in results] == [uid, uid, uid, ""]


def test_the_engine_sees_the_canonical_image_and_nothing_else(shipped: Path) -> None:
    engine = FakeEngine(describe())
    result = Predictor(engine=engine)(shipped / "MR_small.dcm")
    (batch,) = engine.batches
    np.testing.assert_array_equal(batch, as_batch([result.canonical.pixels]))
    assert batch.shape == (1, 1, 16, 16)
    assert result.canonical.voi == "header window 600/1600 LINEAR"


def test_a_list_gives_a_list_and_a_tuple_too() -> None:
    predictor = Predictor(engine=FakeEngine(describe()))
    image = np.zeros((8, 8), np.uint8)
    assert predictor([]) == []
    assert len(predictor([image])) == 1
    assert len(predictor((image, image))) == 2


def test_a_file_of_several_frames_needs_frames(cine: Path) -> None:
    predictor = Predictor(engine=FakeEngine(describe()))
    with pytest.raises(ScanUnfit, match=r"15 frames; expected one \(Predictor.frames handles"):
        predictor(cine)
    results = list(predictor.frames(cine, name="dose"))
    assert [result.frame for result in results] == list(range(15))
    assert {result.scan for result in results} == {"dose"}
    assert len({result.canonical.pixels.tobytes() for result in results}) > 1


def test_frames_before_a_damaged_one_are_yielded(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "SC_rgb_rle_2frame.dcm")
    data = bytearray(dataset.PixelData)
    data[-300:] = bytes(300)
    dataset.PixelData = bytes(data)
    recipe = Recipe(size=(16, 16), channels=3, window=HeaderVoi())
    found = Predictor(engine=FakeEngine(describe(recipe=recipe))).frames(dataset)
    assert next(found).frame == 0
    with pytest.raises(ScanError):
        next(found)


def test_what_is_missing_is_refused_where_the_rule_says_so(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    del dataset.Modality
    predictor = Predictor(engine=FakeEngine(describe(intended_use=only("MR", missing="reject"))))
    with pytest.raises(ScanOutOfScope, match="Modality is missing; expected MR"):
        predictor(dataset)


def test_a_modality_out_of_scope_is_refused_before_the_pixels_are_decoded(shipped: Path) -> None:
    engine = FakeEngine(describe(intended_use=only("CT", "PT")))
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    dataset.PixelData = b""
    with pytest.raises(ScanOutOfScope) as error:
        Predictor(engine=engine)(dataset)
    assert error.value.reason == "Modality is MR; expected CT or PT"
    facts = error.value
    assert (facts.attribute, facts.found, facts.expected) == ("Modality", "MR", "CT or PT")
    assert engine.batches == []


def test_a_modality_in_scope_and_an_unknown_one_are_taken(shipped: Path) -> None:
    engine = FakeEngine(describe(intended_use=only("MR")))
    predictor = Predictor(engine=engine)
    predictor(shipped / "MR_small.dcm")
    predictor(np.zeros((8, 8), np.uint8))
    assert len(engine.batches) == 2


def test_the_result_in_json_is_complete_and_plain(tiny_model: Path, shipped: Path) -> None:
    result = Predictor(tiny_model, device="cpu", threads=1)(shipped / "MR_small.dcm")
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data.pop("scan").endswith("MR_small.dcm")
    assert data.pop("engine").startswith("ONNX Runtime")
    times = data.pop("milliseconds")
    assert set(times) == {"read", "prepare", "run"}
    assert all(0 <= ms < 60_000 for ms in times.values())
    chances = data.pop("probabilities")
    assert data.pop("answers") == {
        "label": {
            "kind": "multiclass",
            "finding": "dark",
            "probabilities": chances,
            "prediction_set": None,
            "value": None,
            "interval": None,
            "unit": None,
        }
    }
    assert set(chances) == {"dark", "bright"}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert max(chances, key=chances.__getitem__) == data["finding"]
    logits = data.pop("logits")
    assert logits == pytest.approx(result.logits.tolist(), abs=1e-5)
    assert data == {
        "frame": 0,
        "sop_instance_uid": "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457",
        "status": "ok",
        "finding": "dark",
        "voi": "header window 600/1600 LINEAR",
        "model": {
            "name": "tiny",
            "version": "1",
            "precision": "fp32",
            "digest": file_digest(tiny_model),
            "site": None,
        },
        "prediction_set": None,
        "novelty": None,
        "warnings": [],
    }


def test_maps_and_embedding_are_those_of_the_image(shipped: Path) -> None:
    result = Predictor(engine=FakeEngine(describe()))(shipped / "MR_small.dcm")
    assert result.cam.shape == (2, 4, 4)
    np.testing.assert_allclose(result.cam.mean(axis=(1, 2)), result.logits, atol=1e-6)
    image = as_batch(result.canonical.pixels)
    np.testing.assert_allclose(
        result.embedding, [image.mean(), image.std(), image.min(), image.max()], atol=1e-5
    )


@pytest.mark.parametrize(
    ("threshold", "finding"), [(0.5, "positive"), (0.7, "positive"), (0.74, "negative")]
)
def test_the_stored_operating_point_decides(threshold: float, finding: str) -> None:
    point = OperatingPoint(rule="threshold", positive="positive", threshold=threshold)
    engine = FakeEngine(
        describe(decision=Decision(heads=(HeadDecision(operating_point=point),))), brightness
    )
    result = Predictor(engine=engine)(np.full((8, 8), 255, np.uint8))
    assert result.probabilities["positive"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert result.finding == finding


def test_a_low_threshold_finds_what_argmax_does_not() -> None:
    image = np.zeros((8, 8), np.uint8)
    logits = np.array([[1.0, 0.0]])
    point = OperatingPoint(rule="threshold", positive="positive", threshold=0.2)
    by_argmax = Predictor(engine=FakeEngine(describe(), lambda _: logits))(image)
    by_threshold = Predictor(
        engine=FakeEngine(
            describe(decision=Decision(heads=(HeadDecision(operating_point=point),))),
            lambda _: logits,
        )
    )(image)
    assert (by_argmax.finding, by_threshold.finding) == ("negative", "positive")
    assert by_argmax.probabilities == by_threshold.probabilities


def test_the_temperature_calibrates_the_probabilities_and_not_the_logits() -> None:
    image = np.full((8, 8), 255, np.uint8)
    result = Predictor(
        engine=FakeEngine(
            describe(decision=Decision(heads=(HeadDecision(temperature=0.5),))), brightness
        )
    )(image)
    assert result.logits.tolist() == [0, 1]
    assert result.probabilities["positive"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_number_gives_no_finding(value: float) -> None:
    """With a threshold, NaN would read as negative."""
    point = OperatingPoint(rule="threshold", positive="positive", threshold=0.5)
    engine = FakeEngine(
        describe(decision=Decision(heads=(HeadDecision(operating_point=point),))),
        lambda _: np.array([[0.0, value]]),
    )
    with pytest.raises(ModelUnusable, match="its outputs are not finite on fake engine"):
        Predictor(engine=engine)(np.zeros((8, 8), np.uint8))


def test_scans_that_do_not_fit_are_refused_by_name(shipped: Path, tmp_path: Path) -> None:
    fixed = Recipe(size=(16, 16), channels=1, window=FixedWindow(centre=40, width=400))
    engine = FakeEngine(describe(recipe=fixed))
    predictor = Predictor(engine=engine)
    with pytest.raises(ScanUnfit, match=r"SC_rgb_rle\.dcm: "):
        predictor(shipped / "SC_rgb_rle.dcm")
    with pytest.raises(ScanUnfit, match="array: "):
        predictor(np.zeros((8, 8), np.uint8))
    with pytest.raises(ScanUnreadable, match="NaN"):
        predictor(np.full((8, 8), np.nan))
    with pytest.raises(ScanNotFound):
        predictor(tmp_path / "nothing.dcm")
    assert engine.batches == []


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such model file"):
        Predictor(tmp_path / "nothing.onnx")


def test_a_given_engine_needs_no_model_file_and_has_no_digest() -> None:
    predictor = Predictor(engine=FakeEngine(describe(name="mine", version="3")))
    assert predictor.model == {
        "name": "mine",
        "version": "3",
        "precision": "fp32",
        "digest": None,
        "site": None,
    }


# --- warnings, abstention, novelty


def test_a_header_that_departs_a_little_is_scored_with_a_warning(shipped: Path) -> None:
    rules = (
        Rule(attribute="Modality", values=("CT",), mismatch="warn"),
        Rule(attribute="ViewPosition", values=("AP",), missing="warn"),
        Rule(attribute="Rows", low=1, high=10_000),
    )
    engine = FakeEngine(describe(intended_use=IntendedUse(rules=rules)))
    result = Predictor(engine=engine)(shipped / "MR_small.dcm")
    assert result.status == "ok"
    assert [(one.attribute, one.found, one.action) for one in result.warnings] == [
        ("Modality", "MR", "warn"),
        ("ViewPosition", None, "warn"),
    ]
    assert result.to_json()["warnings"][0]["expected"] == "CT"


@pytest.mark.parametrize(
    ("thresholds", "possible", "status"),
    [
        ((0.4, 0.4), ("positive",), "ok"),
        ((0.2, 0.2), ("negative", "positive"), "abstained"),
        ((0.9, 0.9), (), "abstained"),
        ((0.2, 0.9), ("negative",), "abstained"),  # alone in the set, but not what was found
    ],
)
def test_the_finding_stands_only_where_it_is_alone_in_the_prediction_set(
    thresholds: tuple[float, float], possible: tuple[str, ...], status: str
) -> None:
    triage = Triage(error_rate=0.1, thresholds=thresholds, images=50)
    engine = FakeEngine(
        describe(decision=Decision(heads=(HeadDecision(triage=triage),))), brightness
    )
    result = Predictor(engine=engine)(WHITE)  # the positive class has 0.73
    assert (result.prediction_set, result.status) == (possible, status)
    assert result.finding == ("positive" if status == "ok" else None)
    assert result.probabilities["positive"] == pytest.approx(0.731, abs=1e-3)


def watchful(mahalanobis: float = 4.0, energy: float = 100.0) -> FakeEngine:
    """Return an engine whose model knows black images only, and refuses those far from them."""
    black = EmbeddingReference(
        means=np.zeros((1, 4), np.float32),
        directions=np.zeros((0, 4), np.float32),
        variances=np.zeros(0, np.float32),
        residual=0.1,
        images=100,
    )
    cutoffs = NoveltyCutoffs(
        energy=energy, mahalanobis=mahalanobis, false_refusal_rate=0.02, images=100
    )
    described = describe(
        embedding_reference=black, decision=Decision(heads=(HeadDecision(),), novelty=cutoffs)
    )
    return FakeEngine(described, brightness)


def test_an_image_unlike_the_training_data_is_refused_and_has_no_score() -> None:
    predictor = Predictor(engine=watchful())
    known = predictor(BLACK)
    assert known.novelty is not None
    assert known.novelty.mahalanobis == 0
    with pytest.raises(ScanNovel) as error:
        predictor(WHITE)  # mean, minimum and maximum are 1: 3 / 0.1
    facts = error.value
    assert (facts.attribute, facts.found, facts.expected) == ("mahalanobis", 30.0, "at most 4")
    (outcome,) = predictor.outcomes(WHITE)
    assert isinstance(outcome, Failure)
    row = outcome.to_json()
    assert (row["status"], row["reason"], row["frame"]) == ("refused", "out-of-distribution", 0)
    assert "probabilities" not in row
    assert "finding" not in row


def test_the_energy_refuses_too() -> None:
    silent = watchful(mahalanobis=1000, energy=-1.0)  # -log(1 + e) = -1.3, -log 2 = -0.7
    predictor = Predictor(engine=silent)
    assert predictor(WHITE).finding == "positive"
    with pytest.raises(ScanNovel) as error:
        predictor(BLACK)
    assert (error.value.attribute, error.value.expected) == ("energy", "at most -1")


def test_novelty_can_be_scored_without_refusing() -> None:
    result = Predictor(engine=watchful(), refuse_novel=False)(WHITE)
    assert result.novelty is not None
    assert result.novelty.mahalanobis == pytest.approx(30)
    assert result.to_json()["novelty"] == {"energy": -1.3133, "mahalanobis": 30.0}


def test_a_novel_frame_does_not_stop_the_others(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    black = np.full_like(dataset.pixel_array, -2000)
    white = np.full_like(black, 3000)
    dataset.NumberOfFrames = 4
    dataset.PixelData = np.stack([black, white, black, white]).tobytes()
    outcomes = list(Predictor(engine=watchful()).outcomes(dataset))
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok", "refused"]
    assert [outcome.frame for outcome in outcomes] == [0, 1, 2, 3]
    assert {outcome.header.sop_instance_uid for outcome in outcomes} == {dataset.SOPInstanceUID}


def test_an_embedding_that_is_no_number_is_no_reason_to_trust_the_logits() -> None:
    engine = FakeEngine(describe())
    run = engine.run
    engine.run = lambda images: run(images) | {"embedding": np.full((1, 4), np.nan, np.float32)}  # type: ignore[method-assign]
    with pytest.raises(ModelUnusable, match="not finite"):
        Predictor(engine=engine)(BLACK)


def test_a_reference_of_other_embeddings_scores_nothing() -> None:
    """NumPy would stretch one number over all dimensions."""
    engine = watchful()
    reference = engine.description.embedding_reference
    assert reference is not None
    for size in (1, 7):
        wrong = dataclasses.replace(
            reference,
            means=np.zeros((1, size), np.float32),
            directions=np.zeros((0, size), np.float32),
        )
        other = dataclasses.replace(engine.description, embedding_reference=wrong)
        with pytest.raises(
            ModelUnusable, match=f"embedding of 4 numbers; its reference has {size}"
        ):
            Predictor(engine=FakeEngine(other, brightness))(BLACK)


# --- the site file


def fitted(temperature: float = 2.0, novelty: NoveltyCutoffs | None = None) -> Decision:
    return Decision(heads=(HeadDecision(temperature=temperature),), novelty=novelty)


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny.onnx")


def put_site(model: Path, decision: Decision, path: Path | None = None, digest: str = "") -> Path:
    path = path or site_path(model)
    digest = digest or file_digest(model)
    write_site(path, model_digest=digest, decision=decision, unit="image", account={})
    return path


def test_the_site_file_beside_the_model_decides_and_results_say_so(model: Path) -> None:
    before = Predictor(model, device="cpu", threads=1)(WHITE)
    path = put_site(model, fitted())
    after = Predictor(model, device="cpu", threads=1)(WHITE)
    assert before.model["site"] is None
    assert after.model == before.model | {"site": file_digest(path)}
    np.testing.assert_array_equal(before.logits, after.logits)
    odds = [
        np.log(one.probabilities["bright"] / one.probabilities["dark"]) for one in (before, after)
    ]
    assert odds[0] == pytest.approx(2 * odds[1])


def test_another_site_file_or_none_can_be_asked_for(model: Path, tmp_path: Path) -> None:
    put_site(model, fitted())
    other = put_site(model, fitted(temperature=4.0), tmp_path / "other.json")
    assert Predictor(model, site=False).decision == Decision(heads=(HeadDecision(),))
    assert Predictor(model, site=other).decision.heads[0].temperature == 4
    assert Predictor(model).decision.heads[0].temperature == 2


def test_a_site_file_of_another_model_is_not_used(model: Path) -> None:
    put_site(model, fitted(), digest="sha256:" + 64 * "0")
    with pytest.raises(SiteFileUnusable, match="--no-site"):
        Predictor(model)
    assert Predictor(model, site=False).model["site"] is None


def test_a_damaged_site_file_is_not_overlooked(model: Path) -> None:
    site_path(model).write_text("{")
    with pytest.raises(SiteFileUnusable, match="it is damaged"):
        Predictor(model)
    with pytest.raises(SiteFileUnusable, match="No such file"):
        Predictor(model, site=model.with_name("none.json"))


def test_cutoffs_on_site_that_the_model_cannot_score_are_not_overlooked(model: Path) -> None:
    cutoffs = NoveltyCutoffs(energy=1, mahalanobis=9, false_refusal_rate=0.02, images=50)
    put_site(model, fitted(novelty=cutoffs))
    with pytest.raises(SiteFileUnusable, match="cannot score novelty"):
        Predictor(model)


# --- loading in the background


def test_in_the_background_a_scan_is_read_before_the_model_is_there(tmp_path: Path) -> None:
    predictor = Predictor(tmp_path / "nothing.onnx", background=True)
    (failure,) = predictor.outcomes(tmp_path / "nothing.dcm")
    assert isinstance(failure, Failure)
    assert failure.error.code == "scan-not-found"
    for ask in (lambda: predictor.engine, lambda: predictor.description, lambda: predictor.model):
        with pytest.raises(ModelNotFound):
            ask()
    with pytest.raises(ModelNotFound):
        predictor(BLACK)


def test_in_the_background_and_in_the_foreground_results_are_the_same(tiny_model: Path) -> None:
    waiting = Predictor(tiny_model, device="cpu", threads=1, background=True)
    ready = Predictor(tiny_model, device="cpu", threads=1)
    np.testing.assert_array_equal(waiting(WHITE).logits, ready(WHITE).logits)
    assert waiting.model == ready.model


def test_a_loaded_predictor_leaves_no_thread_of_its_own(tiny_model: Path) -> None:
    Predictor(tiny_model, device="cpu", threads=1)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("medtl-load")]


# --- a series


def slices(values: Sequence[float]) -> Case:
    """Return a case of slices with these pixel values, made of scans of one frame each."""
    along = Position(origin=(0, 0, 0), orientation=(1, 0, 0, 0, 1, 0))
    scans = []
    for number, value in enumerate(values):
        pixels = np.full((8, 8), value * 255, np.uint8)
        header = Header(
            modality="MR",
            series_instance_uid="1.2.3",
            study_instance_uid="1.2",
            sop_instance_uid=f"1.2.3.{number}",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            rows=8,
            columns=8,
            frame_of_reference_uid="1.9",
            pixel_spacing=(1, 1),
            positions=(dataclasses.replace(along, origin=(0, 0, 2.0 * number)),),
        )
        scans.append(dataclasses.replace(scan_of_array(pixels, f"s/{number}.dcm"), header=header))
    (case,) = group(scans)
    assert isinstance(case, Case)
    return case


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("max", 1.0), ("mean", 0.5), ("top-2-mean", 0.8)],
)
def test_a_case_has_the_aggregated_probabilities_of_its_slices(
    aggregation: str, expected: float
) -> None:
    described = describe(
        aggregation=Aggregation.parse(aggregation),
        decision=Decision(heads=(HeadDecision(operating_point=AT_LEAST_HALF),)),
    )
    engine = FakeEngine(described, lambda images: brightness(images) * 10 - [[0, 5]])
    values = [0.0, 0.6, 1.0, 0.2]
    result = Predictor(engine=engine).case(slices(values))
    assert isinstance(result, CaseResult)
    chances = 1 / (1 + np.exp(5 - 10 * np.round(np.array(values) * 255) / 255))
    wanted = {
        "max": chances.max(),
        "mean": chances.mean(),
        "top-2-mean": np.sort(chances)[-2:].mean(),
    }[aggregation]
    assert result.probabilities["positive"] == pytest.approx(wanted, abs=2e-3)
    assert sum(result.probabilities.values()) == pytest.approx(1)
    assert result.finding == ("positive" if wanted >= 0.5 else "negative")
    assert [one.scan for one in result.slices] == [f"s/{n}.dcm" for n in range(4)]
    assert result.series_instance_uid == "1.2.3"
    assert expected == pytest.approx(wanted, abs=0.1)


def test_a_case_abstains_by_the_prediction_set_of_the_whole() -> None:
    triage = Triage(error_rate=0.1, thresholds=(0.1, 0.1), images=50)
    engine = FakeEngine(
        describe(decision=Decision(heads=(HeadDecision(triage=triage),))), brightness
    )
    result = Predictor(engine=engine).case(slices([0, 1]))
    assert isinstance(result, CaseResult)
    assert (result.status, result.finding) == ("abstained", None)
    assert result.prediction_set == ("negative", "positive")


def test_novel_slices_are_left_out_of_a_case_until_they_are_more_than_half() -> None:
    predictor = Predictor(engine=watchful())
    few = predictor.case(slices([0, 0, 1, 0]))
    assert isinstance(few, CaseResult)
    assert [one.status for one in few.slices] == ["ok", "ok", "refused", "ok"]
    assert len(few.scored) == 3
    assert few.finding == "negative"
    half = predictor.case(slices([0, 0, 1, 1]))
    assert isinstance(half, CaseResult)
    most = predictor.case(slices([0, 1, 1, 1]))
    assert isinstance(most, Failure)
    assert most.error.code == "out-of-distribution"
    assert (most.error.found, most.error.expected) == (3, "at most 2")


def test_a_slice_that_cannot_be_read_refuses_the_case_by_its_number(shipped: Path) -> None:
    case = slices([0, 0, 0])

    def damaged(_: Sequence[int]):
        raise ScanUnreadable("s/1.dcm", "it cannot be decoded")
        yield

    broken = dataclasses.replace(case.slices[1].scan, decode=damaged)
    members = (case.slices[0], dataclasses.replace(case.slices[1], scan=broken), case.slices[2])
    result = Predictor(engine=FakeEngine(describe())).case(
        dataclasses.replace(case, slices=members)
    )
    assert isinstance(result, Failure)
    assert result.error.code == "scan-unreadable"
    assert result.error.reason == "slice 2 of 3: it cannot be decoded"
    assert result.scan == case.name


def test_a_case_out_of_scope_is_refused_with_the_facts() -> None:
    engine = FakeEngine(describe(intended_use=only("CT")))
    result = Predictor(engine=engine).case(slices([0, 0]))
    assert isinstance(result, Failure)
    row = result.to_json()
    assert (row["status"], row["attribute"], row["found"]) == ("refused", "Modality", "MR")
    assert engine.batches == []


def test_a_case_can_let_go_of_the_images_of_its_slices() -> None:
    predictor = Predictor(engine=FakeEngine(describe()))
    for keep in (True, False):
        result = predictor.case(slices([0, 1]), keep=keep)
        assert isinstance(result, CaseResult)
        assert [one.canonical.pixels.size > 0 for one in result.scored] == [keep, keep]
        assert [one.cam.size > 0 for one in result.scored] == [keep, keep]


def test_the_slices_of_a_real_series_are_scored_in_their_order(collection: Path) -> None:
    folder = next(path for path in sorted((collection / "series").iterdir()) if path.is_dir())
    scans: list[Scan] = [read_scan(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    cases = [case for case in group(reversed(scans)) if isinstance(case, Case)]
    assert cases
    result = Predictor(engine=FakeEngine(describe())).case(cases[0])
    assert isinstance(result, CaseResult)
    assert len(result.slices) == len(cases[0].slices)
    assert all(isinstance(one, Result) for one in result.slices)
    assert [one.scan for one in result.slices] == [one.scan.source for one in cases[0].slices]
