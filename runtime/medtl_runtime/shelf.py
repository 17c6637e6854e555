"""Where the runtime looks for a model file when none is named."""

import os
from contextlib import suppress
from pathlib import Path

from medtl_runtime.errors import ModelNotFound


def find_model(named: Path | None = None) -> Path:
    """Return the model file to use.

    In this order: ``named``; the environment variable ``MEDTL_MODEL``; the only model in
    ``./models``; the only model in the user's data folder.

    Raises
    ------
    ModelNotFound
        The named file is not there; no model is found, or several, which are then listed.
    """
    if named is None and os.environ.get("MEDTL_MODEL"):
        named = Path(os.environ["MEDTL_MODEL"])
    if named is not None:
        with suppress(OSError):  # such as a name that is too long
            if named.is_file():
                return named
        raise ModelNotFound(f"{named}: no such model file")
    folders = [Path("models"), user_folder()]
    for folder in folders:
        found = sorted(folder.glob("*.onnx"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(str, found))
            raise ModelNotFound(f"several models, choose one with --model: {names}")
    places = " and ".join(map(str, folders))
    raise ModelNotFound(f"no model in {places}; name one with --model FILE or MEDTL_MODEL")


def user_folder() -> Path:
    """Return the folder for a user's model files, as the operating system names it."""
    import platformdirs

    return Path(platformdirs.user_data_dir("medtl", appauthor=False)) / "models"
