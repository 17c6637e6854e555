"""Keeps prepared images on disk, so that an image is decoded once and not at every start.

An image is taken from the cache when its file has the size and the time of change that it had, and
when the recipe and the code that prepared it are those that run. What cannot be read is not kept:
it is tried again, because an installed codec or a mounted disk may help.

Two runs may build a cache at once: the second waits for the first and then finds its images. Where
the file system has no locks each writes shards of its own, which is right and only takes more room.
A run that is killed loses the shard that it was filling.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from medtl_runtime.errors import OutputNotWritten, ScanError
from medtl_runtime.recipe import Recipe
from medtl_train.config.data import NO_CACHE
from medtl_train.data.decoding import Decoded
from medtl_train.data.readers import read_samples
from medtl_train.data.samples import Sample
from medtl_train.data.shards import INDEX, Stamp, pixel_path, read_shard, remove_shard, write_shard

Note = Callable[[str], None]

_SHARD_BYTES = 64 * 2**20
_SHARD_FILES = 2048
_LEFT_BEHIND = 24 * 3600.0
"""Seconds after which what a killed run has left half-written is removed."""


def cache_root(option: str | None) -> Path | None:
    """Return the folder that ``--cache`` means; None for no cache."""
    import platformdirs

    if option is None:
        return Path(platformdirs.user_cache_dir("medtl", appauthor=False)) / "train"
    return None if option == NO_CACHE else Path(option)


class ImageCache:
    """The prepared images of one recipe; without a folder they are in memory, and end with it."""

    def __init__(self, root: Path | None, recipe: Recipe) -> None:
        """Make a cache; no folder is made before something is written."""
        self._folder = None if root is None else root / _name_of(recipe)
        self._stamps: dict[str, Stamp] = {}
        self._known: dict[str, Decoded] = {}
        self._loaded: set[Path] = set()
        self._waiting: dict[str, tuple[Stamp, Decoded]] = {}
        self._bytes = 0

    def load(self, sources: Iterable[str]) -> None:
        """Find what is kept of these sources and still holds."""
        files: dict[str, Stamp | None] = {}
        for source in sources:
            file = _file_of(source)
            if file not in files:
                files[file] = _stamp(file)
            if (stamp := files[file]) is not None:
                self._stamps[_key(source)] = stamp
        if self._folder is not None:
            for index in sorted(self._folder.glob(f"*{INDEX}")):
                self._load_shard(index)

    def _load_shard(self, index: Path) -> None:
        """Take what still holds; remove a shard in which nothing does."""
        if index in self._loaded:
            return
        self._loaded.add(index)
        shard = read_shard(index)
        if shard is None:
            remove_shard(index)
            return
        here = [one for one in shard.kept if one.source in self._stamps]
        same = [one for one in here if one.stamp == self._stamps[one.source]]
        if shard.made_by != pixel_path() or (not same and len(here) == len(shard.kept)):
            remove_shard(index)
            return
        self._known.update((one.source, one.decoded) for one in same)

    def get(self, source: str) -> Decoded | None:
        """Return what a source holds, if that is known."""
        return self._known.get(_key(source))

    @contextmanager
    def building(self, note: Note) -> Iterator[None]:
        """Write what is added in the block; no other run does meanwhile, if locks are to be had.

        Raises
        ------
        OutputNotWritten
            The disk is full, or the folder cannot be made or written to.
        """
        if self._folder is None:
            yield
            return
        with _with_remedy(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("w")
        with lock:
            _wait_for(lock.fileno(), self._folder, note)
            _sweep(self._folder)
            yield
            self._flush()

    def add(self, source: str, decoded: Decoded) -> None:
        """Keep what a source holds; in `building`, and raises as that does."""
        key = _key(source)
        self._known[key] = decoded
        if self._folder is None or key not in self._stamps:
            return
        self._waiting[key] = (self._stamps[key], decoded)
        self._bytes += decoded.pixels.nbytes
        if self._bytes >= _SHARD_BYTES or len(self._waiting) >= _SHARD_FILES:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        assert self._folder is not None
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        with _with_remedy(self._folder):
            index = write_shard(self._folder, waiting)
        self._load_shard(index)  # from now on the images are on disk, and not in memory


def read_through(
    cache: ImageCache,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    readers: int | None = None,
    track: Callable[[Iterable], Iterable] = iter,
    note: Note = lambda _: None,
) -> list[Decoded | ScanError]:
    """Return what each sample holds, or why it cannot be used; read what the cache has not.

    Parameters
    ----------
    cache
        Of the same recipe.
    track
        Wraps the iteration over samples, for progress.
    note
        Tells that another run is waited for.

    Raises
    ------
    OutputNotWritten
        The cache cannot be written.
    """
    cache.load(sample.source for sample in samples)
    if all(cache.get(sample.source) for sample in samples):
        return [found for one in track(samples) if (found := cache.get(one.source))]
    failed: dict[str, ScanError] = {}
    with cache.building(note):
        cache.load(sample.source for sample in samples)  # another run may have read them meanwhile
        missing = {one.source: one for one in samples if cache.get(one.source) is None}
        outcomes = read_samples(list(missing.values()), recipe, readers=readers)
        for sample in track(samples):
            if missing.pop(sample.source, None) is None:
                continue
            outcome = next(outcomes)
            if isinstance(outcome, ScanError):
                failed[sample.source] = outcome
            else:
                cache.add(sample.source, outcome)
    return [cache.get(one.source) or failed[one.source] for one in samples]


def _name_of(recipe: Recipe) -> str:
    height, width = recipe.size
    digest = sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()
    return f"{recipe.channels}x{height}x{width}-{digest[:16]}"


def _key(source: str) -> str:
    """Return a source as it is called from everywhere; most are, and there may be a million."""
    return source if source.startswith(os.sep) else str(Path(source).absolute())


def _file_of(source: str) -> str:
    """Return the file of a source that may be an image of an ``.npz``."""
    file, _, _ = source.rpartition(".npz#")
    return f"{file}.npz" if file else source


def _stamp(file: str) -> Stamp | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _wait_for(lock: int, folder: Path, note: Note) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"another run is filling {folder}; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return  # no locks on this file system: see the top of the module


def _sweep(folder: Path) -> None:
    """Remove what killed runs have left: files half-written, and images without an index."""
    long_ago = time.time() - _LEFT_BEHIND
    whole = {path.name.removesuffix(INDEX) for path in folder.glob(f"*{INDEX}")}
    for path in [*folder.glob(".*.part"), *folder.glob("*.npy")]:
        with suppress(OSError):
            if path.stem not in whole and path.stat().st_mtime < long_ago:
                path.unlink()


@contextmanager
def _with_remedy(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, OutputNotWritten) else error
        reason = getattr(cause, "strerror", None) or str(cause)
        remedy = f"{reason}; --cache names another folder, --cache none keeps images in memory"
        raise OutputNotWritten(folder, OSError(remedy)) from error
