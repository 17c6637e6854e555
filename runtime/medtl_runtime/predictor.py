"""From a scan to a finding."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.engine import Device, Engine, OnnxRuntimeEngine
from medtl_runtime.errors import ModelUnusable, ScanOutOfScope, ScanUnfit
from medtl_runtime.modelfile import Description, file_digest, probabilities
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import Canonical, as_batch
from medtl_runtime.scan import Header
from medtl_runtime.shelf import find_model

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What the model says of one image."""

    scan: str
    frame: int
    """Index of the frame in the scan, from 0."""
    sop_instance_uid: str
    finding: str
    """The class at the model's operating point."""
    probabilities: dict[str, float]
    """Calibrated probability of each class; they add up to 1."""
    logits: NDArray[np.float32]
    """Shape (K,)."""
    cam: NDArray[np.float32] = field(repr=False)
    """Class activation maps, K x h x w; the mean over a map is the class's logit."""
    embedding: NDArray[np.float32] = field(repr=False)
    """Shape (D,)."""
    canonical: Canonical = field(repr=False)
    """The image as the network saw it."""
    model: dict[str, str]
    """Name, version, precision and digest of the model file."""
    engine: str
    milliseconds: dict[str, float]
    """Wall time of the steps: read (with decoding), prepare, run."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values, without pixels and maps."""
        return {
            "scan": self.scan,
            "frame": self.frame,
            "sop_instance_uid": self.sop_instance_uid,
            "status": "ok",
            "finding": self.finding,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "logits": [round(float(logit), 5) for logit in self.logits],
            "voi": self.canonical.voi,
            "model": self.model,
            "engine": self.engine,
            "milliseconds": {step: round(ms, 2) for step, ms in self.milliseconds.items()},
        }


class Predictor:
    """A loaded model, ready for scans.

    >>> predictor = Predictor("models/liver.onnx")        # doctest: +SKIP
    >>> predictor("scan.dcm").probabilities["lesion"]     # doctest: +SKIP
    0.93
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: Device = "auto",
        threads: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Load a model.

        Parameters
        ----------
        model
            A model file; `shelf.find_model` says where one is looked for by default.
        device, threads
            See `OnnxRuntimeEngine`.
        engine
            An engine with a loaded model, in place of ONNX Runtime; ``model`` is then not read.

        Raises
        ------
        ModelNotFound, ModelUnusable, DeviceUnavailable, EngineMissing
            As their names say.
        """
        digest = "none"
        if engine is None:
            path = find_model(None if model is None else Path(model))
            engine = OnnxRuntimeEngine(path, device=device, threads=threads)
            digest = file_digest(path)
        self.engine: Engine = engine
        described = engine.description
        self.model = {
            "name": described.name,
            "version": described.version,
            "precision": described.precision,
            "digest": digest,
        }

    @property
    def description(self) -> Description:
        """What the model says of itself."""
        return self.engine.description

    @overload
    def __call__(self, scan: "str | Path | Dataset | NDArray") -> Result: ...
    @overload
    def __call__(self, scan: "Sequence[str | Path | Dataset | NDArray]") -> list[Result]: ...
    def __call__(self, scan):
        """Return the result for a scan with one frame, or a list of results for a list of scans.

        Raises
        ------
        ScanError
            The scan cannot be read, does not fit the recipe or is out of the model's scope.
        ScanUnfit
            It has several frames; `frames` handles these.
        """
        if isinstance(scan, list | tuple):
            return [self(one) for one in scan]
        results = list(self.frames(scan, at_most=1))
        return results[0]

    def frames(
        self,
        scan: "str | Path | Dataset | NDArray",
        name: str | None = None,
        *,
        at_most: int | None = None,
    ) -> Iterator[Result]:
        """Yield a result for each frame of a scan, one frame in memory at a time.

        Raises
        ------
        ScanError
            As for a call; results of earlier frames have been yielded by then.
        ModelUnusable
            The engine cannot run the network, or it gives NaN or infinity.
        """
        started = time.perf_counter()
        opened = read_scan(scan, name)
        self._require_scope(opened.header, opened.source)
        if at_most is not None and opened.frame_count > at_most:
            found = f"{opened.frame_count} frames; expected {at_most}"
            raise ScanUnfit(opened.source, f"{found} (Predictor.frames handles several)")
        for index, frame in enumerate(opened.frames()):
            decoded = time.perf_counter()
            canonical = self.description.recipe.apply(frame, opened.source)
            prepared = time.perf_counter()
            outputs = self.engine.run(as_batch([canonical.pixels]))
            ran = time.perf_counter()
            times = {
                "read": decoded - started,
                "prepare": prepared - decoded,
                "run": ran - prepared,
            }
            yield self._result(opened.source, opened.header, index, canonical, outputs, times)
            started = time.perf_counter()

    def _require_scope(self, header: Header, source: str) -> None:
        expected = self.description.intended_use.modalities
        if header.is_dicom and expected and header.modality not in expected:
            found, made_for = header.modality or "missing", ", ".join(expected)
            raise ScanOutOfScope(source, f"Modality is {found}; the model was made for {made_for}")

    def _result(self, source, header, index, canonical, outputs, times) -> Result:
        described = self.description
        logits = outputs["logits"][0]
        if not np.isfinite(logits).all():  # NaN passes every comparison as "no": a silent negative
            found = f"its logits for {source} are not finite on {self.engine.name}"
            raise ModelUnusable(self.model["name"], found)
        chances = probabilities(logits, described.temperature)
        return Result(
            scan=source,
            frame=index,
            sop_instance_uid=header.sop_instance_uid,
            finding=described.operating_point.decide(described.classes, chances),
            probabilities=dict(zip(described.classes, map(float, chances), strict=True)),
            logits=logits,
            cam=outputs["cam"][0],
            embedding=outputs["embedding"][0],
            canonical=canonical,
            model=self.model,
            engine=self.engine.name,
            milliseconds={step: 1000 * seconds for step, seconds in times.items()},
        )
