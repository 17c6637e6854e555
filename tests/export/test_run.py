import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from medtl_export import run as exporting
from medtl_export.errors import ImagesMissing, ParityFailed, QuantisedSlower, QuantisedWorse
from medtl_runtime import Predictor
from medtl_runtime.errors import OutputExists, UsageError
from medtl_runtime.modelfile import METADATA_KEY
from medtl_runtime.selftest import self_test
from medtl_train import checkpoint as checkpoints
from medtl_train.dataset import read_splits
from medtl_train.errors import CheckpointUnusable
from medtl_train.fit import predict_logits


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "liver.onnx"
    exporting.export(run, path, quantise=False, max_drop=0.005)
    return path


@pytest.fixture(scope="module")
def quantised(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "liver.onnx"
    exporting.export(run, path, quantise=True, max_drop=1.0)
    return path


@pytest.fixture
def copied_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "liver"))


def test_the_runtime_says_of_a_validation_image_what_torch_says(run: Path, exported: Path) -> None:
    checkpoint = checkpoints.load_run(run)
    predictor = Predictor(exported, device="cpu")
    for sample in list(read_splits(run / "splits.csv", "val"))[:5]:
        result = predictor(sample.source)
        expected = predict_logits(
            checkpoint.restore(), result.canonical.pixels[None], torch.device("cpu")
        )
        np.testing.assert_allclose(result.logits, expected[0], atol=1e-4)


def test_the_file_describes_itself(run: Path, exported: Path) -> None:
    described = Predictor(exported, device="cpu").description
    summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert described.classes == ("healthy", "lesion")
    assert described.recipe.to_json() == summary["recipe"]
    assert described.operating_point.threshold == summary["operating_point"]["threshold"]
    assert described.intended_use.modalities == ("CT",)
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
    account = described.quantisation
    assert account is not None
    assert account["latency"]["low"] > 1
    assert set(account["accuracy"]) == {"fp32", "int8"}
    assert account["operators"]["QuantizeLinear"] > 10
    assert account["machine"]["cpu"]
    assert quantised.stat().st_size < 0.35 * exported.stat().st_size


def test_the_metadata_is_one_json_document(exported: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
    assert json.loads(model.metadata_props[0].value)["schema_version"] == 1


def test_an_existing_file_is_left_alone(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "liver.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExists, match="--overwrite"):
        exporting.export(run, path, quantise=False, max_drop=0)
    assert path.read_bytes() == b"precious"


def account(before: float, after: float, low: float = 2.0) -> dict:
    return {
        "accuracy": {"fp32": {"auroc": before}, "int8": {"auroc": after}},
        "latency": {
            "reference_ms": 2.0,
            "candidate_ms": 1.0,
            "speed_up": low + 0.1,
            "low": low,
            "high": low + 0.2,
        },
    }


def test_a_loss_beyond_max_drop_is_refused_and_one_within_is_not() -> None:
    exporting.require_better(account(0.90, 0.896), 0.005)
    with pytest.raises(QuantisedWorse, match=r"loses 0\.0100 AUROC .* --max-drop allows 0\.005"):
        exporting.require_better(account(0.90, 0.89), 0.005)


def test_int8_that_is_not_surely_faster_is_refused() -> None:
    with pytest.raises(QuantisedSlower, match="not faster on this machine"):
        exporting.require_better(account(0.9, 0.9, low=0.98), 0.005)


def test_a_metric_that_cannot_be_computed_is_refused() -> None:
    with pytest.raises(QuantisedWorse, match="cannot be compared"):
        exporting.require_better(account(0.9, None), 0.005)  # pyright: ignore


def test_a_network_that_torch_and_onnx_disagree_on_writes_no_file(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = exporting.compare.run_all
    monkeypatch.setattr(
        exporting.compare, "run_all", lambda network, pixels: disturbed(network, pixels) + 0.1
    )
    with pytest.raises(ParityFailed):
        exporting.export(copied_run, tmp_path / "m.onnx", quantise=False, max_drop=0)
    assert list(tmp_path.glob("*.onnx*")) == []


def test_missing_images_are_named(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    splits.write_text(splits.read_text(encoding="utf-8").replace("/liver/", "/moved/"))
    with pytest.raises(ImagesMissing, match="no such file"):
        exporting.export(copied_run, tmp_path / "m.onnx", quantise=False, max_drop=0)
    assert not (tmp_path / "m.onnx").exists()


def test_images_that_changed_since_training_are_refused(copied_run: Path, tmp_path: Path) -> None:
    splits = copied_run / "splits.csv"
    kept = next(read_splits(splits, "val")).source
    other = next(read_splits(splits, "train")).source
    splits.write_text(splits.read_text(encoding="utf-8").replace(kept, other))
    with pytest.raises(ImagesMissing, match="changed since training"):
        exporting.export(copied_run, tmp_path / "m.onnx", quantise=False, max_drop=0)


def test_an_unfinished_run_is_refused(copied_run: Path, tmp_path: Path) -> None:
    (copied_run / "metrics.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        exporting.export(copied_run, tmp_path / "m.onnx", quantise=False, max_drop=0)


def test_a_checkpoint_of_another_version_is_refused(copied_run: Path, tmp_path: Path) -> None:
    document = torch.load(copied_run / "best.pt", weights_only=True)
    torch.save({**document, "version": 99}, copied_run / "best.pt")
    with pytest.raises(CheckpointUnusable, match="version 99"):
        exporting.export(copied_run, tmp_path / "m.onnx", quantise=False, max_drop=0)


def test_a_full_disk_leaves_nothing_under_the_name(run: Path, tmp_path: Path) -> None:
    """A file size limit of 1 MiB stands for the full disk: the write fails half-way."""
    script = f"""
import resource, signal
from pathlib import Path
from medtl_export import run as exporting
from medtl_runtime.errors import OutputNotWritten
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    exporting.export(Path({str(run)!r}), Path("m.onnx"), quantise=False, max_drop=0)
except OutputNotWritten as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "refused: m.onnx was not written" in done.stdout
    assert list(tmp_path.iterdir()) == []
