"""The command medtl-infer calibrate: what it fits, prints, refuses and leaves."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision, HeadDecision, NoveltyCutoffs, OperatingPoint, Triage
from medtl_runtime.heads import Head
from medtl_runtime.modelfile import file_digest
from medtl_runtime.novelty import fit_reference
from medtl_runtime.results import Result
from medtl_runtime.series import Case, group
from medtl_runtime.site import read_site, site_path, write_site

Infer = Callable[..., Any]

CLASSES = ("dark", "bright")
HEADS = (Head(name="label", classes=CLASSES),)
PATIENT = "DOE^JANE"
REFERENCE = fit_reference(np.random.default_rng(5).normal(0.5, 0.2, (60, 1)), np.repeat([0, 1], 30))
POINT = OperatingPoint(rule="threshold", positive="bright", threshold=0.5)
OWN = Decision(
    heads=(
        HeadDecision(
            temperature=1.5,
            operating_point=POINT,
            triage=Triage(error_rate=0.2, thresholds=(0.4, 0.4), images=100),
        ),
    ),
    novelty=NoveltyCutoffs(energy=5.0, mahalanobis=4.0, false_refusal_rate=0.1, images=100),
)


def levels(rng: np.random.Generator, label: int, count: int) -> np.ndarray:
    return np.clip(rng.normal(110 + 40 * label, 40, count), 0, 255)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of grey images, 24 of each class, that overlap in brightness."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for index, level in enumerate(levels(rng, label, 24)):
            np.save(folder / name / f"{PATIENT}-{index}.npy", np.full((8, 8), level, np.uint8))
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Path:
    """Return a folder of DICOM series, 12 of each class, of three slices each."""
    folder = tmp_path_factory.mktemp("series")
    dataset = pydicom.dcmread(shipped / "CT_small.dcm")
    del dataset.DataSetTrailingPadding
    dataset.update({"RescaleIntercept": 0, "WindowCenter": 128, "WindowWidth": 256})
    rng = np.random.default_rng(2)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(12):
            dataset.PatientID = f"{PATIENT}-{number % 6}"
            dataset.SeriesInstanceUID = f"1.2.3.{label}.{number}"
            for position, level in enumerate(levels(rng, label, 3)):
                dataset.ImagePositionPatient = [0, 0, position]
                dataset.SOPInstanceUID = f"1.2.3.{label}.{number}.{position}"
                dataset.PixelData = np.full((128, 128), level, np.int16).tobytes()
                dataset.save_as(folder / name / f"{number}-{position}.dcm")
    return folder


@pytest.fixture
def model(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    return make_model(
        path,
        decision=OWN,
        embedding_reference=REFERENCE,
        aggregation=Aggregation(rule="mean"),
    )


def counted(outcomes: list[tuple[int, Any]]) -> dict[str, int]:
    """Return what outcomes of labelled cases are, by the names of the account."""
    statuses = Counter(outcome.status for _, outcome in outcomes)
    found = [(label, one.finding) for label, one in outcomes if one.status == "ok"]
    return {
        "findings": statuses["ok"],
        "wrong_findings": sum(CLASSES[label] != finding for label, finding in found),
        "abstained": statuses["abstained"],
        "refused": statuses["refused"],
    }


def both(model: Path) -> dict[str, Predictor]:
    return {"before": Predictor(model, site=False), "after": Predictor(model)}


def labelled_files(folder: Path) -> list[tuple[int, Path]]:
    return [
        (label, path)
        for label, name in enumerate(CLASSES)
        for path in sorted((folder / name).iterdir())
    ]


def test_afterwards_the_model_does_on_the_images_what_was_measured(
    infer: Infer, images: Path, model: Path
) -> None:
    done = infer("calibrate", "--data", images, "--model", model, "--json", "--workers", 1)
    assert done.code == 0
    document = json.loads(done.out)
    account = document["account"]
    assert Path(document["site_file"]) == site_path(model)
    site = read_site(site_path(model), file_digest(model), HEADS)
    assert (site.account, site.unit) == (account, "image")
    assert site.decision == Decision.from_json(document["decision"], HEADS)
    assert account["heads"]["label"]["cases"] == {"dark": 24, "bright": 24}
    assert (account["images"], account["patients"], account["left_out"]) == (48, None, {})
    for when, predictor in both(model).items():
        outcomes = [
            (label, one)
            for label, path in labelled_files(images)
            for one in predictor.outcomes(path)
        ]
        found = counted(outcomes)
        assert found == {name: account["heads"]["label"][when][name] for name in found}
    assert account["heads"]["label"]["before"]["refused"] > 0  # and still fitted on
    assert account["heads"]["label"]["after"]["abstained"] > 0
    assert (
        account["heads"]["label"]["after"]["negative_log_likelihood"]
        < account["heads"]["label"]["before"]["negative_log_likelihood"]
    )
    # The rates are those of the model, as none were given.
    assert site.decision.heads[0].triage is not None
    assert site.decision.novelty is not None
    assert site.decision.heads[0].triage.error_rate == 0.2
    assert site.decision.novelty.false_refusal_rate == 0.1
    assert account["heads"]["label"]["after"]["wrong_findings"] <= 0.2 * 48
    assert account["heads"]["label"]["after"]["refused"] <= 0.1 * 48


def test_afterwards_the_model_does_on_the_series_what_was_measured(
    infer: Infer, series: Path, model: Path
) -> None:
    options = ["--series", "--criterion", "sensitivity=0.9", "--json"]
    done = infer("calibrate", "--data", series, "--model", model, *options)
    assert done.code == 0
    account = json.loads(done.out)["account"]
    site = read_site(site_path(model), file_digest(model), HEADS)
    assert site.unit == "series"
    assert site.decision.heads[0].temperature == OWN.heads[0].temperature
    assert (
        site.decision.heads[0].operating_point.chosen
        == "sensitivity of at least 0.9 on 24 local series"
    )
    assert account["heads"]["label"]["cases"] == {"dark": 12, "bright": 12}
    assert (account["images"], account["patients"]) == (72, 6)
    for when, predictor in both(model).items():
        outcomes = []
        for label, name in enumerate(CLASSES):
            paths = sorted((series / name).iterdir())
            scans = [read(path) for path in paths]
            for case in group(scans):
                assert isinstance(case, Case)
                outcomes.append((label, predictor.case(case)))
        found = counted(outcomes)
        assert found == {key: account["heads"]["label"][when][key] for key in found}
    slices = [one for _, case in outcomes for one in case.slices]
    assert sum(not isinstance(one, Result) for one in slices) > 0  # some left out of their case
    assert account["heads"]["label"]["after"]["sensitivity"] >= 0.9
    assert "the label of a series does not say what each slice shows" in done.err
    assert "24 cases are of 6 patients" in done.err


def read(path: Path):
    from medtl_runtime.reading import read_scan

    return read_scan(path)


def test_the_table_shows_both_and_says_on_what_they_were_measured(
    infer: Infer, images: Path, model: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "cases.csv"
    rows = [
        f"{path},{CLASSES[label]},{PATIENT}{number % 10}"
        for number, (label, path) in enumerate(labelled_files(images))
    ]
    (tmp_path / f"{PATIENT}.npy").write_bytes(b"no image")
    rows += [f"{PATIENT}.npy,dark,", f"{PATIENT}-gone.npy,dark,"]
    manifest.write_text("\n".join(["path,label,patient_id", *rows]))
    target = tmp_path / "elsewhere" / "fitted.json"
    done = infer(
        *("calibrate", "--data", manifest, "--model", model, "--output", target),
        *("--error-rate", 0, "--false-refusal-rate", 0, "--workers", 1),
    )
    assert done.code == 3
    lines = done.out.splitlines()
    assert lines[0] == "fitted on 48 cases (dark 24, bright 24), 48 images"
    assert lines[1] == "left out: 2 (scan-not-found 1, scan-unreadable 1)"
    assert lines[3].split() == ["before", "after"]
    table = {line[:28].strip(): line[28:].split() for line in lines[4:17]}
    site = read_site(target, file_digest(model), HEADS)
    decision, account = site.decision, site.account
    assert table["temperature"] == ["1.5000", f"{decision.heads[0].temperature:.4f}"]
    assert table["operating point"] == [
        "0.5000",
        f"{decision.heads[0].operating_point.threshold:.4f}",
    ]
    assert table["error rate of triage"] == ["0.2000", "-"]
    assert table["rate of false refusal"] == ["0.1000", "-"]
    for label, name in (("accuracy", "accuracy"), ("sensitivity", "sensitivity")):
        pair = [f"{account['heads']['label'][when][name]:.4f}" for when in ("before", "after")]
        assert table[label] == pair
    assert table["cases with a finding"] == [
        str(account["heads"]["label"]["before"]["findings"]),
        "48",
    ]
    assert lines[-2].startswith('The figures "after" are of the cases that were fitted on')
    assert lines[-1] == f"{target} was written; use it with --site"
    assert (decision.heads[0].triage, decision.novelty) == (None, None)
    assert not site_path(model).exists()
    assert "24 cases of dark: with fewer than 50" in done.err
    assert "48 cases are of 10 patients" in done.err
    assert PATIENT not in done.out + done.err + target.read_text()


def test_an_older_site_file_has_no_part_in_it(infer: Infer, images: Path, model: Path) -> None:
    old = Decision(heads=(HeadDecision(temperature=20.0, operating_point=POINT),))
    write_site(
        site_path(model), model_digest=file_digest(model), decision=old, unit="image", account={}
    )
    options = ["--data", images, "--model", model, "--workers", 1, "--quiet"]
    refused = infer("calibrate", *options)
    assert (refused.code, refused.out) == (2, "")
    assert "--overwrite" in refused.err
    done = infer("calibrate", *options, "--overwrite")
    assert (done.code, done.err) == (0, "")
    assert "temperature                     1.5000" in done.out
    assert (
        read_site(site_path(model), file_digest(model), HEADS).decision.heads[0].triage is not None
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nothing"], "--data nothing: no such folder"),
        (["--criterion", "accuracy"], "criterion is accuracy; expected youden"),
        (["--positive", "grey"], "--positive is no class; the classes are dark, bright"),
        (["--series", "--workers", "2"], "--workers is for images"),
        (["--output", "tiny.onnx", "--overwrite"], "is the model, or the data"),
        (["--output", "taken.json"], "taken.json exists"),
        (["--error-rate", "1"], "a rate of 1"),
        (["--model", "gone.onnx"], "no such model file"),
        (["--error-rate", "0.01"], "--error-rate 0.01 takes 99 cases of each class; dark has 24"),
        (["--error-rate", "1e-320"], "--error-rate is 1e-320; expected 1e-06 or more"),
        (["--error-rate", "nan"], "--error-rate is nan"),
        (["--false-refusal-rate", "1e-320"], "--false-refusal-rate is 1e-320; expected 1e-06"),
        (["--false-refusal-rate", "0.02"], "--false-refusal-rate 0.02 takes 99 images"),
    ],
)
def test_what_cannot_be_done_is_refused(
    infer: Infer, images: Path, model: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "taken.json").touch()
    before = model.read_bytes()
    given = ["--model", model] if "--model" not in options else []
    given += ["--data", images] if "--data" not in options else []
    done = infer("calibrate", *given, *options)
    assert done.code == (4 if "gone.onnx" in options else 2)
    assert words in done.err
    assert done.out == ""
    assert not site_path(model).exists()
    assert model.read_bytes() == before


def test_a_model_without_a_positive_class_needs_one_for_a_criterion(
    infer: Infer, images: Path, tiny_model: Path, tmp_path: Path
) -> None:
    options = ["--data", images, "--model", tiny_model, "--output", tmp_path / "site.json"]
    done = infer("calibrate", *options, "--criterion", "youden")
    assert done.code == 2
    assert "--criterion needs --positive" in done.err
    done = infer("calibrate", *options, "--false-refusal-rate", "0.1")
    assert done.code == 2
    assert "holds nothing to score novelty by" in done.err


def test_more_than_two_classes_have_no_threshold(
    infer: Infer, images: Path, make_model: Callable[..., Path]
) -> None:
    model = make_model(classes=("dark", "bright", "grey"))
    done = infer("calibrate", "--data", images, "--model", model, "--positive", "dark")
    assert done.code == 2
    assert "for two classes; the model has 3" in done.err
    done = infer("calibrate", "--data", images, "--model", model)
    assert done.code == 2
    assert "too few to calibrate: 0 of grey; it takes 10 cases of each class" in done.err


def test_cases_that_cannot_be_used_do_not_count_as_enough(
    infer: Infer, images: Path, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for label, path in labelled_files(images):
        (data / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        number = int(path.stem.rpartition("-")[2])
        content = b"no image" if label == 1 and number >= 9 else path.read_bytes()
        (data / CLASSES[label] / path.name).write_bytes(content)
    done = infer("calibrate", "--data", data, "--model", model, "--workers", 1)
    assert (done.code, done.out) == (2, "")
    assert "too few to calibrate: 9 of bright; it takes 10 cases of each class; " in done.err
    assert "left out: 15 (scan-unreadable 15)" in done.err
    assert PATIENT not in done.err
    assert not site_path(model).exists()
