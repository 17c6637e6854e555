import csv
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pydicom
import pytest
import torch

from medtl_export import choose as choosing
from medtl_export import run as exporting
from medtl_export.describe import OLDEST_ONNXRUNTIME
from medtl_export.documents import paths
from medtl_export.errors import GateUndefined, ParityFailed
from medtl_export.search import Outcome
from medtl_export.settings import Quantising, Settings
from medtl_export.workbench import Choice, Workbench
from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.errors import (
    ModelUntrusted,
    OutputExists,
    ScanNovel,
    ScanOutOfScope,
    UsageError,
)
from medtl_runtime.modelfile import METADATA_KEY
from medtl_runtime.onnxfile import read_model_file
from medtl_runtime.selftest import self_test
from medtl_train import checkpoint as checkpoints
from medtl_train.errors import CheckpointUnusable, ImagesMissing
from medtl_train.fitting.predict import predict_logits


def files_of(run: Path, split: str) -> dict[str, str]:
    """Return the label of each file of a split."""
    with (run / "splits.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return {row["source"]: row["label"] for row in rows}


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "liver.onnx"
    exporting.export(run, path, Settings())
    return path


@pytest.fixture(scope="module")
def quantised(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an int8 file; for ARM, so that it does not depend on this machine's speed."""
    path = tmp_path_factory.mktemp("models") / "liver.onnx"
    exporting.export(run, path, Settings(target="arm", quantise=Quantising(max_drop=None)))
    return path


@pytest.fixture
def copied_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "liver"))


def test_the_runtime_says_of_a_validation_image_what_torch_says(run: Path, exported: Path) -> None:
    checkpoint = checkpoints.load_run(run)
    predictor = Predictor(exported, device="cpu")
    for source in list(files_of(run, "val"))[:5]:
        result = predictor(source)
        expected = predict_logits(
            checkpoint.restore(), result.canonical.pixels[None], torch.device("cpu")
        )
        np.testing.assert_allclose(result.logits, expected[0], atol=1e-4)


def test_the_file_describes_itself(run: Path, exported: Path) -> None:
    described = Predictor(exported, device="cpu").description
    summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert described.classes == ("healthy", "lesion")
    assert described.recipe.to_json() == summary["recipe"]
    decision = described.decision
    ((name, fitted),) = summary["heads"].items()
    (own,) = decision.heads
    assert [head.name for head in described.heads] == [name]
    assert own.operating_point.threshold == fitted["operating_point"]["threshold"]
    assert own.temperature == fitted["temperature"] != 1
    assert described.intended_use.rules[0].values == ("CT",)
    assert str(described.aggregation) == "max"
    assert described.precision == "fp32"
    assert described.quantisation is None
    assert described.provenance["validation"] == summary["validation"]
    assert described.provenance["data_fingerprint"] == summary["data"]["fingerprint"]


def test_the_file_names_no_path_and_no_patient(run: Path, exported: Path) -> None:
    content = exported.read_bytes()
    for secret in (str(run.parent).encode(), b"PHANTOM-LIVER", b".dcm", str(Path.home()).encode()):
        assert secret not in content


def test_the_self_test_passes_and_catches_a_changed_weight(exported: Path, tmp_path: Path) -> None:
    assert self_test(Predictor(exported, device="cpu").engine).difference == 0
    model = onnx.load(exported)
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    changed = onnx.numpy_helper.to_array(weight) * 1.1
    weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(Exception, match="differs from the stored logits"):
        self_test(Predictor(tmp_path / "changed.onnx", device="cpu").engine)


def test_the_int8_file_accounts_for_its_quantisation(quantised: Path, exported: Path) -> None:
    described = Predictor(quantised, device="cpu").description
    assert described.precision == "int8"
    assert described.target == "arm"
    account = described.quantisation
    assert account is not None
    assert account["latency"] is None
    assert account["not_measured"] == "this is no ARM processor"
    assert account["difference"]["low"] <= account["difference"]["value"]
    assert set(account["accuracy"]) == {"fp32", "chosen"}
    assert account["operators"]["QuantizeLinear"] > 10
    assert {row["reason"] for row in account["kept_in_float"]} == {"head"}
    assert account["machine"]["cpu"]
    assert quantised.stat().st_size < 0.35 * exported.stat().st_size


@pytest.fixture(scope="module")
def measured(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file for this machine; whether it is in integers depends on the machine."""
    path = tmp_path_factory.mktemp("models") / "liver.onnx"
    exporting.export(run, path, Settings(quantise=Quantising(max_drop=0.5)))
    return path


def test_int8_is_measured_to_be_faster_and_no_worse_or_it_is_not_int8(measured: Path) -> None:
    described = Predictor(measured, device="cpu").description
    account = described.quantisation
    assert account is not None
    assert [row["name"] for row in account["search"] if row["latency"]]
    if described.precision == "int8":
        assert account["latency"]["low"] > 1
        assert account["difference"]["low"] > -0.5
        assert "chosen" in [row["verdict"] for row in account["search"]]
    else:
        assert described.precision == "fp32"
        assert account["latency"] is None
        assert account["scheme"] == "float32"
        assert "not surely faster" in account["reason"] or "slower" in account["reason"]


def test_exporting_again_gives_the_same_bytes(run: Path, measured: Path, tmp_path: Path) -> None:
    told: list[str] = []
    settings = Settings(quantise=Quantising(max_drop=0.5))
    again = tmp_path / measured.name
    exporting.export(run, again, settings, note=told.append)
    assert again.read_bytes() == measured.read_bytes()
    assert any("of an earlier search are taken as they are" in line for line in told)
    for one, other in zip(paths(measured), paths(again), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_an_interrupted_search_goes_on_where_it_stopped(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied_run / "export", ignore_errors=True)
    error, measured = Workbench.measured_error, list[str]()

    def interrupted(bench: Workbench, choice: Choice) -> float:
        measured.append(choice.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return error(bench, choice)

    monkeypatch.setattr(Workbench, "measured_error", interrupted)
    settings = Settings(target="arm", quantise=Quantising(max_drop=None))
    with pytest.raises(KeyboardInterrupt):
        exporting.export(copied_run, tmp_path / "m.onnx", settings)
    assert list(tmp_path.glob("*.onnx*")) == []
    exporting.export(copied_run, tmp_path / "m.onnx", settings)
    first, second, *others = measured
    assert second in others
    assert first not in others


def test_a_student_goes_through_the_gate_against_its_teacher(
    copied_run: Path, tmp_path: Path
) -> None:
    """Its folder lies beside the teacher's; the second time it is taken as it is."""

    quantising = Quantising(max_drop=None)
    settings = Settings(target="arm", distil="squeezenet1_1", quantise=quantising)
    told: list[str] = []
    path = tmp_path / "m.onnx"
    exporting.export(copied_run, path, settings, note=told.append)
    description = Predictor(path, device="cpu").description
    assert description.provenance["architecture"] == "squeezenet1_1"
    assert description.provenance["distillation"]["teacher"]["arch"] == "resnet18"
    account = description.quantisation
    assert account is not None
    assert account["distillation"]["teacher"]["arch"] == "resnet18"
    summary = json.loads((copied_run / "metrics.json").read_text(encoding="utf-8"))
    (name,) = summary["heads"]
    of_teacher = summary["validation"]["heads"][name]["metrics"]["auroc"]["value"]
    assert account["accuracy"]["fp32"][name]["auroc"] == pytest.approx(of_teacher)
    assert not any("taken as it is" in line for line in told)
    exporting.export(copied_run, path, settings, overwrite=True, note=told.append)
    assert any("is the student; it is taken as it is" in line for line in told)


def test_what_is_not_accurate_enough_is_fine_tuned_with_rounded_weights(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    search, searched = choosing.search, list[Outcome]()

    def disappointed(bench: Workbench, note: Callable[[str], None]) -> Outcome:
        found = search(bench, note)
        searched.append(replace(found, choice=None, inaccurate=True) if not searched else found)
        return searched[-1]

    monkeypatch.setattr(choosing, "search", disappointed)
    settings = Settings(target="arm", quantise=Quantising(max_drop=None, qat=True))
    told: list[str] = []
    exported = exporting.export(copied_run, tmp_path / "m.onnx", settings, note=told.append)
    assert any("quantisation-aware fine-tuning, 4 epochs" in line for line in told)
    assert exported.precision == "int8"
    assert exported.account is not None
    assert exported.account["qat"]["products"] == 20
    verdicts = [row["verdict"] for row in exported.account["search"]]
    assert {"chosen", "fine-tuned: chosen"} <= set(verdicts)


def test_report_card_and_materials_are_written_beside_the_file(quantised: Path) -> None:
    report, text, document, materials = paths(quantised)
    card = json.loads(document.read_text(encoding="utf-8"))
    digest = read_model_file(quantised).digest
    assert card["model"]["digest"] == digest
    assert digest in text.read_text(encoding="utf-8")
    assert digest.removeprefix("sha256:")[:12] in report.read_text(encoding="utf-8")
    bom = json.loads(materials.read_text(encoding="utf-8"))
    assert digest.removeprefix("sha256:") in json.dumps(bom["metadata"]["component"])
    assert {"torch", "onnx"} <= {component["name"] for component in bom["components"]}


def test_an_existing_report_is_left_alone_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "m.card.md").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExists, match="--overwrite"):
        exporting.export(run, tmp_path / "m.onnx", Settings())
    assert (tmp_path / "m.card.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "cpu-avx2"])
def test_a_file_for_another_machine_is_made_by_rule(
    target: str, run: Path, exported: Path, tmp_path: Path
) -> None:
    from medtl_export.targets import find_target, not_measured

    if not_measured(find_target(target)) is None:
        pytest.skip(f"this machine is one for --target {target}")
    path = tmp_path / "m.onnx"
    exporting.export(run, path, Settings(target=target, quantise=Quantising(max_drop=None)))
    described = Predictor(path, device="cpu").description
    account = described.quantisation
    assert account is not None
    assert described.target == account["target"] == target
    assert described.precision == ("fp16" if target == "cuda" else "int8")
    assert account["not_measured"]
    if target == "cpu-avx2":
        assert account["saturation"] == "impossible, by its weights"
    limit = 0.55 if target == "cuda" else 0.35
    assert path.stat().st_size < limit * exported.stat().st_size


def test_a_file_for_openvino_is_tested_with_openvino(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "m.onnx"
    exported = exporting.export(run, path, Settings(target="openvino"))
    assert exported.precision == "fp32"
    predictor = Predictor(path)
    assert "OpenVINO" in predictor.engine.name
    assert predictor(next(iter(files_of(run, "val")))).finding


def test_validation_images_without_a_class_cannot_open_the_gate(
    copied_run: Path, tmp_path: Path
) -> None:
    splits = copied_run / "splits.csv"
    with splits.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["split"] != "val" or row["label"] == "healthy"]
    with splits.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    path = tmp_path / "m.onnx"
    with pytest.raises(GateUndefined, match=r"no validation images of lesion.*--max-drop none"):
        exporting.export(copied_run, path, Settings(quantise=Quantising()))
    assert list(tmp_path.glob("*.onnx*")) == []
    settings = Settings(target="arm", quantise=Quantising(max_drop=None))
    assert exporting.export(copied_run, path, settings).precision == "int8"


def test_too_few_training_images_are_refused(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    lines = splits.read_text(encoding="utf-8").splitlines(keepends=True)
    train = [line for line in lines if ",train," in line]
    splits.write_text("".join(line for line in lines if line not in train[5:]), encoding="utf-8")
    with pytest.raises(UsageError, match="5 training images; --quantize calibrates with at least"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings(quantise=Quantising()))


def test_images_with_a_label_that_is_no_class_are_refused(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    text = splits.read_text(encoding="utf-8")
    splits.write_text(text.replace(",healthy,", ",cirrhosis,"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"splits\.csv: .*cirrhosis"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings(quantise=Quantising()))


def test_a_run_without_validation_images_is_refused(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    lines = splits.read_text(encoding="utf-8").splitlines(keepends=True)
    splits.write_text("".join(line for line in lines if ",val," not in line), encoding="utf-8")
    with pytest.raises(UsageError, match="has no val images"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())


def test_the_metadata_is_one_json_document(exported: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
    assert json.loads(model.metadata_props[0].value)["schema_version"] == 4


@pytest.fixture(scope="module")
def guarded(run: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a signed int8 file with everything that refuses."""
    path = tmp_path_factory.mktemp("models") / "guarded.onnx"
    settings = Settings(
        target="arm",
        quantise=Quantising(max_drop=None),
        false_refusal_rate=0.2,
        error_rate=0.2,
        aggregation=Aggregation.parse("top-2-mean"),
        intended_use={"PatientAge": {"low": 18, "missing": "allow"}, "Rows": False},
        sign=key,
    )
    exporting.export(run, path, settings)
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of an Ed25519 private key; its public half is ``public.pem`` beside it."""
    return write_keys(tmp_path_factory.mktemp("keys"))


def write_keys(folder: Path) -> Path:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "private.pem").write_bytes(private)
    (folder / "public.pem").write_bytes(public)
    return folder / "private.pem"


def test_the_signed_file_is_verified_by_its_key_alone(
    guarded: Path, key: Path, tmp_path: Path
) -> None:
    from medtl_runtime.signature import verify

    verify(read_model_file(guarded), key.with_name("public.pem"))
    with pytest.raises(ModelUntrusted):
        verify(read_model_file(guarded), write_keys(tmp_path).with_name("public.pem"))
    onnx.checker.check_model(onnx.load(guarded))


def test_the_decision_is_fitted_on_what_the_file_itself_computes(run: Path, guarded: Path) -> None:
    predictor = Predictor(guarded, device="cpu", refuse_novel=False)
    described = predictor.description
    assert described.precision == "int8"
    assert str(described.aggregation) == "top-2-mean"
    triage, novelty = described.decision.heads[0].triage, described.decision.novelty
    assert triage is not None
    assert novelty is not None
    files = files_of(run, "val")
    results = [predictor(source) for source in files]
    assert triage.images == novelty.images == len(results)
    scores = [result.novelty for result in results]
    for name in ("energy", "mahalanobis"):
        # A cut-off is one of the validation images' own scores.
        found = [getattr(one, name) for one in scores]
        assert min(abs(np.array(found) - getattr(novelty, name))) < 1e-4 * max(map(abs, found))
    pairs = zip(files.values(), results, strict=True)
    missed = [truth not in (result.prediction_set or ()) for truth, result in pairs]
    assert np.mean(missed) <= 0.2


def test_noise_in_the_frame_of_a_scan_is_refused_as_novel(run: Path, guarded: Path) -> None:
    dataset = pydicom.dcmread(next(iter(files_of(run, "val"))))
    predictor = Predictor(guarded, device="cpu")
    stored = dataset.pixel_array
    noise = np.random.default_rng(0).choice([stored.min(), stored.max()], stored.shape)
    dataset.PixelData = noise.astype(stored.dtype).tobytes()
    with pytest.raises(ScanNovel) as refused:
        predictor(dataset)
    assert refused.value.attribute in ("energy", "mahalanobis")


def test_scans_outside_the_intended_use_are_refused(run: Path, guarded: Path) -> None:
    predictor = Predictor(guarded, device="cpu", refuse_novel=False)
    source = next(iter(files_of(run, "val")))
    rules = {rule.attribute for rule in predictor.description.intended_use.rules}
    assert "Rows" not in rules
    assert {"Modality", "PatientAge", "Columns"} <= rules
    for changes, attribute in (
        ({"Modality": "MR"}, "Modality"),
        ({"PatientAge": "009Y"}, "PatientAge"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "ImageType"),
    ):
        dataset = pydicom.dcmread(source)
        for name, value in changes.items():
            setattr(dataset, name, value)
        with pytest.raises(ScanOutOfScope) as refused:
            predictor(dataset)
        assert refused.value.attribute == attribute


def test_without_enough_validation_images_there_is_no_novelty_check_and_a_note(
    run: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    exported = exporting.export(run, tmp_path / "m.onnx", Settings(), note=told.append)
    count = exported.parity.images
    assert f"no novelty check: {count} validation images; it takes 39" in told
    assert exported.decision.novelty is None
    assert Predictor(tmp_path / "m.onnx", device="cpu").description.embedding_reference is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(false_refusal_rate=0.001), "takes 1999 validation images"),
        (Settings(error_rate=0.001), "takes 999 validation images of each class"),
        (Settings(sign=Path("nowhere.pem")), "nowhere.pem"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_network_is_traced(
    settings: Settings, words: str, run: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with pytest.raises(UsageError, match=words):
        exporting.export(run, tmp_path / "m.onnx", settings, note=told.append)
    assert "tracing" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["heads", "headers"])
def test_a_run_of_another_version_is_refused(
    missing: str, copied_run: Path, tmp_path: Path
) -> None:
    path = copied_run / "metrics.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary.pop(missing, None)
    summary["data"].pop(missing, None)
    path.write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(UsageError, match="of another version of medtl"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())


def test_the_engine_that_a_file_requires_is_the_oldest_that_medtl_installs() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"onnxruntime>={OLDEST_ONNXRUNTIME}" in extras["cpu"]


def test_an_existing_file_is_left_alone(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "liver.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExists, match="--overwrite"):
        exporting.export(run, path, Settings())
    assert path.read_bytes() == b"precious"


def test_a_network_that_torch_and_onnx_disagree_on_writes_no_file(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all = exporting.compare.run_all

    def disturbed(network, pixels):
        found = run_all(network, pixels)
        return replace(found, logits=found.logits + 0.1)

    monkeypatch.setattr(exporting.compare, "run_all", disturbed)
    with pytest.raises(ParityFailed):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())
    assert list(tmp_path.glob("*.onnx*")) == []


def test_missing_images_are_named(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    splits.write_text(splits.read_text(encoding="utf-8").replace("/liver/", "/moved/"))
    with pytest.raises(ImagesMissing, match="no such file"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())
    assert not (tmp_path / "m.onnx").exists()


def test_images_that_changed_since_training_are_refused(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    kept, other = (next(iter(files_of(copied_run, name))) for name in ("val", "train"))
    splits.write_text(splits.read_text(encoding="utf-8").replace(kept, other))
    with pytest.raises(ImagesMissing, match="changed since training"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())


def test_an_unfinished_run_is_refused(copied_run: Path, tmp_path: Path) -> None:
    (copied_run / "metrics.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())


def test_a_checkpoint_of_another_version_is_refused(copied_run: Path, tmp_path: Path) -> None:
    document = torch.load(copied_run / "best.pt", weights_only=True)
    torch.save({**document, "version": 99}, copied_run / "best.pt")
    with pytest.raises(CheckpointUnusable, match="version 99"):
        exporting.export(copied_run, tmp_path / "m.onnx", Settings())


def test_a_full_disk_leaves_nothing_under_the_name(run: Path, tmp_path: Path) -> None:
    """A file size limit of 1 MiB stands for the full disk: the write fails half-way."""
    script = f"""
import resource, signal
from pathlib import Path
from medtl_export import choose as choosing
from medtl_export import run as exporting
from medtl_export.settings import Settings
from medtl_runtime.errors import OutputNotWritten
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    exporting.export(Path({str(run)!r}), Path("m.onnx"), Settings())
except OutputNotWritten as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "refused: m.onnx was not written" in done.stdout
    assert list(tmp_path.iterdir()) == []
