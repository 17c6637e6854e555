"""From a scan to a finding."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.aggregation import LEAST_SCORED, too_few
from medtl_runtime.answers import answers_of, combined
from medtl_runtime.decision import Decision
from medtl_runtime.engines import Engine, describe_model, load_engine
from medtl_runtime.errors import (
    ModelUnusable,
    ScanError,
    ScanNovel,
    ScanUnfit,
    SiteFileUnusable,
    UsageError,
)
from medtl_runtime.modelfile import Description
from medtl_runtime.novelty import Novelty, exceeds, score
from medtl_runtime.onnxfile import ModelBytes, read_model_file
from medtl_runtime.preparation import Prepared, prepare
from medtl_runtime.recipe import as_batch
from medtl_runtime.results import CaseResult, Failure, Result, without_pixels
from medtl_runtime.scan import Scan
from medtl_runtime.shelf import find_model
from medtl_runtime.signature import claimed_signer
from medtl_runtime.site import Unit, find_site, read_site

if TYPE_CHECKING:
    from medtl_runtime.reading import Readable
    from medtl_runtime.series import Case


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """What is in force for a model: its own decision, or that of its site file."""

    decision: Decision
    unit: Unit
    identity: dict[str, str | None]
    signed_by: str | None = None


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
        device: str = "auto",
        threads: int | None = None,
        site: Path | Literal[False] | None = None,
        require_signature: Path | None = None,
        refuse_novel: bool = True,
        engine: Engine | None = None,
        background: bool = False,
    ) -> None:
        """Load a model.

        Parameters
        ----------
        model
            A model file; `shelf.find_model` says where one is looked for by default.
        device, threads
            See `engines.load_engine`.
        site
            The site file, in place of the one beside the model; False for none.
        require_signature
            A public key (PEM); the model file must be signed by its owner.
        refuse_novel
            Whether images beyond the cut-offs of novelty are refused.
        engine
            An engine with a loaded model, in place of those of medtl; ``model`` is then not read.
        background
            Return at once and load in a thread, so that scans are read meanwhile; what is wrong
            with the model is then raised where it is first needed.

        Raises
        ------
        ModelNotFound, ModelUnusable, ModelUntrusted, SiteFileUnusable, SelfTestFailed,
        DeviceUnavailable, EngineMissing
            As their names say.
        """
        self._refuse_novel = refuse_novel
        self.notes: tuple[str, ...] = ()
        """What happened on the way to the engine, for people."""
        # Hashing a large file takes as long as making a session of it: they go on side by side.
        loader = ThreadPoolExecutor(max_workers=3, thread_name_prefix="medtl-load")
        if engine is not None:
            if site or require_signature is not None:
                raise UsageError("a given engine takes neither a site file nor a signature")
            self._described = loader.submit(lambda: engine.description)
            self._opened = loader.submit(_opened_for, engine)
            self._engine: Future[Engine] = loader.submit(lambda: engine)
        else:
            path = None if model is None else Path(model)
            content = loader.submit(_read, path, require_signature)
            self._described = loader.submit(lambda: describe_model(content.result()))
            self._engine = loader.submit(lambda: self._load(content.result(), device, threads))
            self._opened = loader.submit(
                lambda: _open(content.result(), self._described.result(), site)
            )
        loader.shutdown(wait=not background)
        if not background:
            self._engine.result()
            self._opened.result()

    def _load(self, content: ModelBytes, device: str, threads: int | None) -> Engine:
        self._described.result()  # a model that cannot be used is not handed to an engine
        loaded = load_engine(content, device=device, threads=threads)
        self.notes = loaded.notes
        return loaded.engine

    @property
    def engine(self) -> Engine:
        """The engine that runs."""
        return self._engine.result()

    @property
    def description(self) -> Description:
        """What the model says of itself."""
        return self._described.result()

    @property
    def decision(self) -> Decision:
        """How logits become findings: the site file's decision, else the model's own."""
        return self._opened.result().decision

    @property
    def unit(self) -> Unit:
        """What the decision was fitted to: single images, or whole series."""
        return self._opened.result().unit

    @property
    def signed_by(self) -> str | None:
        """Fingerprint of the key that the model file claims to be signed by, checked or not."""
        return self._opened.result().signed_by

    def require_unit(self, unit: Unit) -> None:
        """Raise `UsageError` where a site file was fitted to images and series are asked for.

        Or the other way round. The model's own decision, fitted to images, is taken for both.
        """
        if self.model["site"] and self.unit != unit:
            how = "add --series" if unit == "image" else "leave out --series"
            found = f"the site file was fitted to each {self.unit}, not to each {unit}"
            raise UsageError(f"{found}; {how}, or add --no-site")

    @property
    def model(self) -> dict[str, str | None]:
        """Name, version, precision and digest of the model file; the digest of its site file."""
        return self._opened.result().identity

    @overload
    def __call__(self, scan: "list[Readable] | tuple[Readable, ...]") -> list[Result]: ...
    @overload
    def __call__(self, scan: "Readable") -> Result: ...
    def __call__(self, scan: Any) -> Result | list[Result]:
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
        from medtl_runtime.reading import read_scan

        opened = read_scan(cast("Readable", scan))
        if opened.frame_count > 1:
            found = f"{opened.frame_count} frames; expected one"
            raise ScanUnfit(opened.source, f"{found} (Predictor.frames handles several)")
        return next(self.frames(opened))

    def frames(self, scan: "Readable | Scan", name: str | None = None) -> Iterator[Result]:
        """Yield a result for each frame of a scan, one frame in memory at a time.

        Raises
        ------
        ScanError
            As for a call; results of earlier frames have been yielded by then.
        ModelUnusable
            The engine cannot run the network, or it gives NaN or infinity.
        """
        for outcome in self.outcomes(scan, name):
            if isinstance(outcome, Failure):
                raise outcome.error
            yield outcome

    def outcomes(
        self, scan: "Readable | Scan", name: str | None = None
    ) -> Iterator[Result | Failure]:
        """Yield a result or a failure for each frame.

        Frames after one that is refused as novel go on; one that cannot be decoded is the last.
        """
        for outcome in self.run_each(self.prepare(scan, name)):
            if isinstance(outcome, Result):
                self.require_unit("image")
            yield outcome

    def prepare(
        self,
        scan: "Readable | Scan",
        name: str | None = None,
        frames: Sequence[int] | None = None,
    ) -> Iterator[Prepared | Failure]:
        """Yield the frames as the network wants them; see `preparation.prepare`."""
        opening = 0.0
        if not isinstance(scan, Scan):  # reading goes on while the model is loaded
            from medtl_runtime.reading import read_scan

            started = time.perf_counter()
            try:
                scan = read_scan(scan, name)
            except ScanError as error:
                yield Failure(scan=error.source, error=error)
                return
            opening = time.perf_counter() - started
        recipe, intended_use = self.description.recipe, self.description.intended_use
        yield from prepare(scan, recipe, intended_use, frames=frames, opening=opening)

    def run_each(self, prepared: Iterable[Prepared | Failure]) -> Iterator[Result | Failure]:
        """Run prepared frames one by one; failures pass."""
        for one in prepared:
            yield one if isinstance(one, Failure) else self.run([one])[0]

    def run(self, batch: Sequence[Prepared]) -> list[Result | Failure]:
        """Run prepared frames as one batch.

        Raises
        ------
        ModelUnusable
            The engine cannot run the network, or it gives NaN or infinity.
        """
        engine = self.engine
        started = time.perf_counter()
        outputs = engine.run(as_batch([one.canonical.pixels for one in batch]))
        share = 1000 * (time.perf_counter() - started) / len(batch)
        return [self._decide(one, outputs, index, share) for index, one in enumerate(batch)]

    def _decide(
        self,
        prepared: Prepared,
        outputs: Mapping[str, NDArray[np.float32]],
        index: int,
        milliseconds: float,
    ) -> Result | Failure:
        described, decision = self.description, self.decision
        logits, embedding = outputs["logits"][index], outputs["embedding"][index]
        # NaN passes every comparison as "no": a silent negative.
        if not (np.isfinite(logits).all() and np.isfinite(embedding).all()):
            found = f"its outputs are not finite on {self.engine.name}"
            raise ModelUnusable(str(self.model["name"]), found)
        reference = described.embedding_reference
        if reference is not None and len(embedding) != reference.means.shape[1]:
            found = f"{len(embedding)} numbers; its reference has {reference.means.shape[1]}"
            raise ModelUnusable(str(self.model["name"]), f"an embedding of {found}")
        heads = described.heads
        novelty = None if reference is None else score(heads, logits, embedding, reference)
        if novelty is not None and (refusal := self._refusal(prepared, novelty)):
            return refusal
        return Result(
            answers=answers_of(heads, decision, logits),
            heads=heads,
            scan=prepared.scan,
            frame=prepared.frame,
            header=prepared.header,
            novelty=novelty,
            warnings=prepared.warnings,
            logits=logits,
            cam=outputs["cam"][index],
            embedding=embedding,
            canonical=prepared.canonical,
            model=self.model,
            engine=self.engine.name,
            milliseconds={**prepared.milliseconds, "run": milliseconds},
        )

    def _refusal(self, prepared: Prepared, novelty: Novelty) -> Failure | None:
        cutoffs = self.decision.novelty
        if cutoffs is None or not self._refuse_novel:
            return None
        beyond = exceeds(novelty, cutoffs)
        if beyond is None:
            return None
        attribute, found, expected = beyond
        error = ScanNovel(
            prepared.scan,
            f"unlike the training data ({attribute})",
            attribute=attribute,
            found=found,
            expected=expected,
        )
        return Failure(
            scan=prepared.scan, error=error, frame=prepared.frame, header=prepared.header
        )

    def case(self, case: "Case", *, keep: bool = True) -> CaseResult | Failure:
        """Return the result for a series, from its slices; see `series.group`.

        Parameters
        ----------
        keep
            Whether the slices keep their images and maps, a few hundred KiB each.
        """
        self.require_unit("series")
        slices: list[Result | Failure] = []
        for _, some in groupby(case.slices, key=lambda one: id(one.scan)):
            frames = list(some)  # of one file: read in one go
            prepared = self.prepare(frames[0].scan, frames=[one.frame for one in frames])
            for outcome in self.run_each(prepared):
                if isinstance(outcome, Result) and not keep:
                    outcome = without_pixels(outcome)  # noqa: PLW2901
                slices.append(outcome)
        return self.combine(case, slices)

    def combine(self, case: "Case", slices: Sequence[Result | Failure]) -> CaseResult | Failure:
        """Return the result for a series from the outcomes of its slices, in their order.

        A slice that cannot be read, or that the intended use excludes, refuses the case. Slices
        that are refused as novel are left out, unless they are more than half.
        """
        scored = [one for one in slices if isinstance(one, Result)]
        failures = [one for one in slices if isinstance(one, Failure)]
        grave = [one for one in failures if not isinstance(one.error, ScanNovel)]
        if grave:
            return _failed_by(grave[0], case, slices.index(grave[0]))
        if too_few(len(scored), len(slices)):
            error = ScanNovel(
                case.name,
                f"{len(failures)} of {len(slices)} slices are unlike the training data",
                attribute="slices",
                found=len(failures),
                expected=f"at most {int(LEAST_SCORED * len(slices))}",
            )
            return Failure(scan=case.name, error=error, header=failures[0].header)
        heads, aggregation = self.description.heads, self.description.aggregation
        slices_say = [one.answers for one in scored]
        return CaseResult(
            answers=combined(heads, self.decision, slices_say, aggregation),
            scan=case.name,
            series_instance_uid=case.series_instance_uid,
            aggregation=aggregation,
            notes=(*case.warnings, *self._cautions()),
            slices=slices,
        )

    def _cautions(self) -> tuple[str, ...]:
        """Return what has to be said of thresholds that were fitted to images, of a series."""
        if self.unit == "series" or not any(one.is_fitted for one in self.decision.heads):
            return ()
        return ("the thresholds were fitted to images, not to series",)


def _failed_by(failed: Failure, case: "Case", index: int) -> Failure:
    """Return the failure of a case that one of its slices, counted from 0, brings about."""
    cause = failed.error
    reason = f"slice {index + 1} of {len(case.slices)}: {cause.reason}"
    facts = {name: getattr(cause, name) for name in ("attribute", "found", "expected")}
    return Failure(
        scan=case.name, error=type(cause)(case.name, reason, **facts), header=failed.header
    )


def _opened_for(engine: Engine) -> _Opened:
    described = engine.description
    identity = _identity(described, digest=None, site=None)
    return _Opened(decision=described.decision, unit="image", identity=identity)


def _read(model: Path | None, require_signature: Path | None) -> ModelBytes:
    """Read a model file once: what is checked and described here is what the engine will run."""
    content = read_model_file(find_model(model))
    if require_signature is not None:
        from medtl_runtime.signature import verify

        verify(content, require_signature)
    return content


def _open(
    content: ModelBytes, described: Description, site: Path | Literal[False] | None
) -> _Opened:
    decision, unit, site_digest = described.decision, "image", None
    beside = find_site(content.path) if site is None else site
    if beside:
        fitted = read_site(beside, content.digest, described.heads)
        if fitted.decision.novelty is not None and described.embedding_reference is None:
            raise SiteFileUnusable(beside, "novelty cut-offs, and the model cannot score novelty")
        decision, unit, site_digest = fitted.decision, fitted.unit, fitted.digest
    identity = _identity(described, digest=content.digest, site=site_digest)
    return _Opened(
        decision=decision,
        unit=unit,
        identity=identity,
        signed_by=claimed_signer(content),
    )


def _identity(
    described: Description, *, digest: str | None, site: str | None
) -> dict[str, str | None]:
    return {
        "name": described.name,
        "version": described.version,
        "precision": described.precision,
        "digest": digest,
        "site": site,
    }
