"""Where a model file is looked for, and in which order."""

from pathlib import Path

import pytest

from medtl_runtime.errors import ModelNotFound
from medtl_runtime.shelf import find_model, user_folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder, with an empty data folder and no model in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDTL_MODEL", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def shelve(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_named_model_wins_over_all_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelve(Path("models/a.onnx"))
    monkeypatch.setenv("MEDTL_MODEL", str(shelve(place / "b.onnx")))
    named = shelve(place / "c.onnx")
    assert find_model(named) == named


def test_the_environment_wins_over_the_folders(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelve(Path("models/a.onnx"))
    monkeypatch.setenv("MEDTL_MODEL", str(shelve(place / "b.onnx")))
    assert find_model() == place / "b.onnx"


def test_the_only_model_of_the_working_folder_wins_over_the_user_s(place: Path) -> None:
    shelve(user_folder() / "user.onnx")
    assert find_model() == user_folder() / "user.onnx"
    assert find_model() == place / "data/medtl/models/user.onnx"
    local = shelve(Path("models/local.onnx"))
    shelve(Path("models/notes.txt"))
    assert find_model() == local


def test_several_models_are_listed_and_none_is_guessed(place: Path) -> None:
    shelve(Path("models/b.onnx"))
    shelve(Path("models/a.onnx"))
    with pytest.raises(ModelNotFound) as error:
        find_model()
    assert str(error.value) == (
        "several models, choose one with --model: models/a.onnx, models/b.onnx"
    )


def test_no_model_says_where_was_looked_and_how_to_name_one(place: Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        find_model()
    assert "no model in models and " in str(error.value)
    assert str(user_folder()) in str(error.value)
    assert "--model FILE or MEDTL_MODEL" in str(error.value)


def test_a_model_in_a_subfolder_is_not_taken(place: Path) -> None:
    shelve(Path("models/old/a.onnx"))
    with pytest.raises(ModelNotFound):
        find_model()


@pytest.mark.parametrize("name", ["nothing.onnx", ".", "x" * 300])
def test_a_named_model_that_is_no_file_is_an_error_and_nothing_else_is_tried(
    place: Path, name: str
) -> None:
    shelve(Path("models/a.onnx"))
    with pytest.raises(ModelNotFound, match="no such model file"):
        find_model(Path(name))


def test_a_wrong_path_in_the_environment_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelve(Path("models/a.onnx"))
    monkeypatch.setenv("MEDTL_MODEL", "nothing.onnx")
    with pytest.raises(ModelNotFound, match=r"nothing\.onnx: no such model file"):
        find_model()
