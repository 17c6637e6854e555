"""Data on disk in the forms that medtl-train takes, and small configurations."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from medtl_train.config import AugmentConfig, TrainConfig
from medtl_train.options import config_from, flat
from medtl_train.phantoms import write_studies
from medtl_train.run import train

STILL = {
    "rotation": 0.0, "shift": 0.0, "scale": 0.0, "shear": 0.0, "crop": 0.0, "brightness": 0.0,
    "contrast": 0.0, "gamma": 0.0, "noise": 0.0, "blur": 0.0,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are faster so, above all where other programs compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No run fills the user's cache; weights that lie there are found nevertheless."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", os.environ.get("TORCH_HOME", str(cache / "torch")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def lung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return phantom CT of 24 patients with two images each, a folder per class."""
    folder = tmp_path_factory.mktemp("data") / "lung"
    write_studies(folder, organ="lung", patients=24, images=2, size=64)
    return folder


@pytest.fixture(scope="session")
def pydicom_files() -> Path:
    """Return the folder of the real DICOM files that pydicom ships."""
    return Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real material beside the repository, where there is one."""
    folder = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real material beside the repository is not here")
    return folder


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """Return a maker of configurations that train in a second; arguments are options by name."""

    def make(**options: Any) -> TrainConfig:
        given = {
            "size": 32,
            "arch": "squeezenet1_1",
            "weights": "none",
            "epochs": 1,
            "batch_size": 16,
            "lr": 1e-3,
            "offline": True,
            "cache": "none",
        }
        return config_from({**flat(TrainConfig()), **given, **options})

    return make


@pytest.fixture(scope="session")
def finished(
    lung: Path, tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a run of ``tiny(epochs=2)`` on ``lung``; it is not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "lung"
    train(lung, folder, tiny(epochs=2), device=torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def still() -> Callable[..., AugmentConfig]:
    """Return a maker of augmentations that change nothing but what is named."""

    def make(**changes: Any) -> AugmentConfig:
        return replace(AugmentConfig(**STILL), **changes)

    return make


@pytest.fixture(scope="session")
def disk_of() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which no file grows beyond a size: writing fails as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Return a function that writes an image of its own for each seed, PNG or NPY by its name."""

    def write(path: Path, seed: int, *, colour: bool = False, side: int = 16) -> Path:
        rng = np.random.default_rng(seed)
        shape = (side, side, 3) if colour else (side, side)
        values = rng.integers(0, 256, shape, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, values)
        else:
            Image.fromarray(values).save(path)
        return path

    return write


class Browser:
    """Chromium without a window, spoken to over pipes (Chrome DevTools Protocol)."""

    def __init__(self, process: subprocess.Popen[bytes], into: BinaryIO, out: BinaryIO) -> None:
        self._process, self._into, self._out = process, into, out
        self._sent = 0
        self.events: list[dict[str, Any]] = []
        """What happened since the page was opened."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command to the page and return its result."""
        return self._call(method, self._session, **given)

    def open(self, page: Path, *, width: int, media: str = "screen") -> None:
        """Load a page, in CSS pixels of width, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", media=media)
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    @property
    def width(self) -> int:
        """Of all that the page shows, in CSS pixels: more than the window where it runs over."""
        return self.evaluate("document.documentElement.scrollWidth")

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for, its own and data in itself left out."""
        urls = [event["params"]["request"]["url"] for event in self.events
                if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return [url for url in urls[1:] if not url.startswith("data:")]

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """What went to the console."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event for event in self.events if event["method"] in kinds]

    def close(self) -> None:
        """End it."""
        self._call("Browser.close")
        self._process.wait(10)
        self._into.close()
        self._out.close()

    def _call(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": given}
        if session is not None:
            message["sessionId"] = session
        self._into.write(json.dumps(message).encode() + b"\0")
        self._into.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        return json.loads(message)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return Chromium, where there is one."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium here to open pages in")
    profile = tmp_path_factory.mktemp("chromium")
    (to_read, into), (out, to_write) = os.pipe(), os.pipe()
    # It speaks on the file descriptors 3 and 4, whatever numbers these have here.
    command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank")  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", command, found, *options],
        pass_fds=(to_read, to_write),
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    opened = Browser(process, os.fdopen(into, "wb"), os.fdopen(out, "rb"))
    yield opened
    opened.close()
