"""Real files, and tiny real models, for the tests of the runtime.

The real files are those that pydicom ships, which are always there, and a larger collection beside
the repository, whose tests are skipped where it is absent.
"""

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pydicom
import pydicom.data
import pytest
from onnx import TensorProto, helper, numpy_helper

from medtl_runtime import cli
from medtl_runtime.engines import Session
from medtl_runtime.heads import width
from medtl_runtime.modelfile import METADATA_KEY, Description
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.selftest import synthetic_logits
from medtl_runtime.testing import describe

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
COLLECTION = Path(__file__).parents[2] / "../shared/data"
ABSENT = "the collection of real files beside the repository is absent"


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``any_dicom_file`` every file of both sources, the broken and the foreign included."""
    if "any_dicom_file" not in metafunc.fixturenames:
        return
    collected = COLLECTION / "dicom"
    cases = [
        pytest.param(path, id=str(path.relative_to(root)))
        for root in (SHIPPED, collected)
        for path in files_of(root)
    ]
    if not collected.is_dir():
        skipped = pytest.mark.skip(reason=ABSENT)
        cases.append(pytest.param(None, marks=skipped, id="collection"))
    metafunc.parametrize("any_dicom_file", cases)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """Return the folder of the DICOM files that pydicom ships."""
    return SHIPPED


@pytest.fixture(scope="session")
def cine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 15 different frames, made of a shipped MR image."""
    dataset = pydicom.dcmread(SHIPPED / "MR_small.dcm")
    stored = dataset.pixel_array
    frames = [np.roll(stored, shift, axis=1) for shift in range(15)]
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = np.stack(frames).tobytes()
    path = tmp_path_factory.mktemp("cine") / "cine.dcm"
    dataset.save_as(path)
    return path


@pytest.fixture(scope="session")
def collection() -> Path:
    """Return the folder of the collected real files."""
    if not COLLECTION.is_dir():
        pytest.skip(ABSENT)
    return COLLECTION


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Return a function from a name to a real DICOM file: shipped, else ``folder/name``."""

    def find(name: str) -> Path:
        if (SHIPPED / name).is_file():
            return SHIPPED / name
        folder: Path = request.getfixturevalue("collection")
        return next((folder / "dicom").rglob(name))

    return find


@pytest.fixture
def changed(real: Callable[[str], Path]) -> Callable[..., pydicom.Dataset]:
    """Return a function that reads a real file and sets attributes; None deletes one."""

    def change(name: str, **values: Any) -> pydicom.Dataset:
        dataset = copy.deepcopy(pydicom.dcmread(real(name)))
        for keyword, value in values.items():
            if value is None:
                if keyword in dataset:
                    del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        return dataset

    return change


MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Return a function that writes a small, real model file.

    The map of a column is a weight times the mean of a quarter of the image's side, plus a bias;
    the logit is the map's mean. Keywords are fields of the description, or for the graph:
    ``batch``, ``outputs`` and ``graph_classes``.
    """

    def make(
        path: Path | None = None,
        *,
        metadata: dict[str, str] | None = None,
        batch: str | int = "N",
        outputs: tuple[str, ...] = ("logits", "cam", "embedding"),
        graph_classes: int | None = None,
        **fields: Any,
    ) -> Path:
        path = path or tmp_path_factory.mktemp("model") / "tiny.onnx"
        fields.setdefault("recipe", Recipe(size=(32, 32), channels=1, window=HeaderVoi()))
        if "heads" not in fields:
            fields.setdefault("classes", ("dark", "bright"))
        described = describe(name="tiny", **fields)
        count = graph_classes or width(described.heads)
        model = _model(described.recipe, count, batch=batch, outputs=outputs)
        if metadata is None:
            if "self_test" not in fields and batch == "N":
                described = _with_self_test(model, described)
            metadata = {METADATA_KEY: described.to_json()}
        helper.set_model_props(model, metadata)
        onnx.save(model, path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: MakeModel) -> Path:
    """Return a valid model file of two classes for grey images of 32 x 32 pixels."""
    return make_model()


def _model(
    recipe: Recipe, classes: int, *, batch: str | int, outputs: tuple[str, ...]
) -> onnx.ModelProto:
    channels, (height, width) = recipe.channels, recipe.size
    weights = np.linspace(-4, 4, classes)[:, None, None, None] * np.ones((1, channels, 1, 1))
    window = [height // 4, width // 4]
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pool"], kernel_shape=window, strides=window),
        helper.make_node("Conv", ["pool", "weights", "biases"], ["cam"]),
        helper.make_node("ReduceMean", ["cam", "axes"], ["logits"], keepdims=0),
        helper.make_node("ReduceMean", ["pool", "axes"], ["embedding"], keepdims=0),
    ]
    shapes = {
        "logits": [batch, classes],
        "cam": [batch, classes, 4, 4],
        "embedding": [batch, channels],
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(
                "image", TensorProto.FLOAT, [batch, channels, height, width]
            )
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [
            numpy_helper.from_array((weights / channels).astype(np.float32), "weights"),
            numpy_helper.from_array(weights[:, 0, 0, 0].astype(np.float32) / -2, "biases"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _with_self_test(model: onnx.ModelProto, described: Description) -> Description:
    if {output.name for output in model.graph.output} != {"logits", "cam", "embedding"}:
        return described
    session = Session(model.SerializeToString(), device="cpu", threads=1)
    logits = synthetic_logits(session, described.recipe, described.self_test.seeds)
    rows = tuple(tuple(map(float, row)) for row in logits)
    if logits.shape[1] != width(described.heads):
        return described
    test = dataclasses.replace(described.self_test, logits=rows)
    return dataclasses.replace(described, self_test=test)


Rows = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Return a function that reads JSON lines, each of which must be valid by the schema."""
    text = files("medtl_runtime").joinpath("result.schema.json").read_text(encoding="utf-8")
    validator = jsonschema.Draft202012Validator(json.loads(text))

    def read(lines: str) -> list[dict[str, Any]]:
        found = [json.loads(line, parse_constant=_no_json) for line in lines.splitlines()]
        for row in found:
            validator.validate(row)
        return found

    return read


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """What a command left."""

    code: int
    out: str
    err: str


Infer = Callable[..., Finished]


@pytest.fixture
def infer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Infer:
    """Return a function that runs ``medtl-infer`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDTL_MODEL", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "no-data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["medtl-infer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Finished(code=int(ended.value.code or 0), out=out, err=err)

    return run
