"""Damaged scans: what reading makes of mutations of real files, pictures, archives and indexes.

Each mutation is read and prepared in a child process that is watched: its outcome is frames or a
coded error; anything else, a crash, a hang or too much memory is a finding. Children are few and
live long, as in the runtime; one that ends is counted and replaced. A mutation is made from the
seed and its number alone, so that each can be repeated:

    python benchmarks/fuzz.py [--count 20000] [--seed 0] [--jobs 2] [--data FOLDER] [--json FILE]
    python benchmarks/fuzz.py --repeat 1234 --save damaged.dcm
"""

import argparse
import json
import logging
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom.data
from pydicom.uid import UID

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"

LARGEST = 600_000
"""Bytes of a file that is mutated: damage in a large one seldom meets what matters."""

LONGEST = 5.0
"""Seconds that a mutation may take."""

MOST_MEMORY = 1024 * 2**20
"""Bytes that the child may have resident; the interpreter with its packages has 100 MiB."""

HANGS = 60.0
"""Seconds after which a child is ended."""

Mutation = Callable[[random.Random, bytes], bytes]


# --- mutations


def _pixels_at(data: bytes) -> int:
    """Return where the pixel data begin, or about where a header ends."""
    at = max(data.rfind(tag) for tag in (b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00"))
    return at if at > 0 else min(len(data), 2000)


def _flip(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        at = rng.randrange(first, max(first + 1, last))
        if at < len(damaged):
            damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip bits anywhere."""
    return _flip(rng, data, 0, len(data))


def flip_header_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip bits before the pixel data."""
    return _flip(rng, data, min(132, len(data) - 1), _pixels_at(data) + 12)


def flip_pixel_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip bits at the beginning of the pixel data, where streams have their headers."""
    first = min(_pixels_at(data), len(data) - 1)
    return _flip(rng, data, first, min(len(data), first + 1000))


def set_bytes(rng: random.Random, data: bytes) -> bytes:
    """Overwrite bytes with extreme ones."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
    return bytes(damaged)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Cut the file short."""
    return data[: rng.randrange(1, len(data))]


def remove(rng: random.Random, data: bytes) -> bytes:
    """Take out a piece."""
    first = rng.randrange(len(data))
    return data[:first] + data[first + rng.choice((1, 2, 8, 100, 5000)) :]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Put in random bytes."""
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 100, 5000))) + data[at:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """Put in a piece of the file again."""
    first, at = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[first : first + rng.choice((8, 100, 5000))]
    return data[:at] + piece * rng.choice((1, 2, 50)) + data[at:]


_VRS = (b"OB", b"OW", b"SQ", b"UN", b"US", b"DS", b"IS", b"UI", b"CS", b"LO", b"SH", b"DA")


def wrong_length(rng: random.Random, data: bytes) -> bytes:
    """Give an element or an item an absurd length."""
    marks = [b"\xfe\xff\x00\xe0", *_VRS]
    rng.shuffle(marks)
    for mark in marks:
        places = _all(data, mark)
        if not places:
            continue
        at = rng.choice(places)
        long = mark in (b"OB", b"OW", b"SQ", b"UN")
        lengths = (0, 1, 7, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
        length = rng.choice((*lengths, len(data), rng.randrange(2**32)))
        if mark.startswith(b"\xfe"):
            return _patched(data, at + 4, struct.pack("<L", length))
        if long:
            return _patched(data, at + 4, struct.pack("<L", length))
        return _patched(data, at + 2, struct.pack("<H", length & 0xFFFF))
    return flip_bits(rng, data)


_NUMBERS = {
    0x0002: (0, 1, 2, 3, 4, 5, 255, 65535),  # SamplesPerPixel
    0x0006: (0, 1, 2, 65535),  # PlanarConfiguration
    0x0010: (0, 1, 7, 8192, 20000, 65535),  # Rows
    0x0011: (0, 1, 7, 8192, 20000, 65535),  # Columns
    0x0100: (0, 1, 7, 8, 12, 16, 24, 32, 64, 65535),  # BitsAllocated
    0x0101: (0, 1, 7, 8, 12, 16, 32, 64, 65535),  # BitsStored
    0x0103: (0, 1, 2, 65535),  # PixelRepresentation
}


def absurd_numbers(rng: random.Random, data: bytes) -> bytes:
    """Change Rows, Columns, samples and bits."""
    for element in rng.sample(sorted(_NUMBERS), rng.choice((1, 2, 3))):
        tag = struct.pack("<HH", 0x0028, element)
        value = struct.pack("<H", rng.choice(_NUMBERS[element]))
        for start in (tag + b"US\x02\x00", tag + b"\x02\x00\x00\x00"):
            at = data.find(start)
            if at >= 0:
                data = _patched(data, at + len(start), value)
    return data


def absurd_frames(rng: random.Random, data: bytes) -> bytes:
    """Give the file another number of frames."""
    text = rng.choice((b"0", b"-1", b"2", b"99", b"500000", b"4294967296", b"9" * 12, b"1.5", b"x"))
    text += b" " * (len(text) % 2)
    tag = struct.pack("<HH", 0x0028, 0x0008)
    for vr, kind in ((b"IS", "<H"), (b"", "<L")):
        at = data.find(tag + vr)
        if at >= 0 and vr:
            (length,) = struct.unpack_from("<H", data, at + 6)
            return (
                data[:at] + tag + vr + struct.pack(kind, len(text)) + text + data[at + 8 + length :]
            )
        rows = data.find(struct.pack("<HH", 0x0028, 0x0010) + (b"US" if vr else b"\x02\x00"))
        if rows >= 0:
            return data[:rows] + tag + vr + struct.pack(kind, len(text)) + text + data[rows:]
    return flip_header_bits(rng, data)


def deep_sequences(rng: random.Random, data: bytes) -> bytes:
    """Put a sequence of sequences of sequences into the header."""
    explicit = struct.pack("<HH", 0x0028, 0x0010) + b"US"
    at = data.find(explicit)
    vr, place = (b"SQ\x00\x00", at) if at >= 0 else (b"", data.find(explicit[:4] + b"\x02\x00"))
    if place < 0:
        return flip_header_bits(rng, data)
    tags = ((0x0008, 0x1140), (0x0028, 0x3010), (0x5200, 0x9230), (0x0009, 0x1001))
    tag = struct.pack("<HH", *rng.choice(tags))
    depth = rng.choice((3, 30, 300, 3000, 10000))
    if rng.random() < 0.5:  # of undefined length, closed or not
        start = tag + vr + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
        end = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
        nested = start * depth + end * rng.choice((depth, 0, 1))
    else:
        nested = b""
        for _ in range(min(depth, 1000)):
            item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(nested)) + nested
            nested = tag + vr + struct.pack("<L", len(item)) + item
    return data[:place] + nested + data[place:]


def many_items(rng: random.Random, data: bytes) -> bytes:
    """Put a sequence of very many empty items into the header."""
    place = data.find(struct.pack("<HH", 0x0028, 0x0010) + b"US")
    if place < 0:
        return flip_header_bits(rng, data)
    items = b"\xfe\xff\x00\xe0" + bytes(4)
    tag = struct.pack("<HH", *rng.choice(((0x0008, 0x1140), (0x5200, 0x9230))))
    items *= rng.choice((10, 1000, 20_000, 300_000))
    length = rng.choice((len(items), 0xFFFFFFFF))
    end = b"\xfe\xff\xdd\xe0" + bytes(4) if length == 0xFFFFFFFF else b""
    nested = tag + b"SQ\x00\x00" + struct.pack("<L", length) + items + end
    return data[:place] + nested + data[place:]


def splice(rng: random.Random, data: bytes) -> bytes:
    """Put the header of a file before the pixel data of a part of it, or swap two pieces."""
    first, second = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:first] + data[second:] + data[first:second]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_header_bits,
    flip_header_bits,
    flip_pixel_bits,
    flip_pixel_bits,
    set_bytes,
    cut,
    remove,
    insert,
    repeat,
    wrong_length,
    wrong_length,
    absurd_numbers,
    absurd_numbers,
    absurd_frames,
    deep_sequences,
    many_items,
    splice,
)


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0 and len(found) < 200:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


# --- the child


def mutated(files: list[Path], seed: int, number: int) -> tuple[Path, str, bytes]:
    """Return the file, the name of the mutation and the damaged bytes."""
    rng = random.Random(f"{seed}-{number}")
    path, mutation = rng.choice(files), rng.choice(MUTATIONS)
    return path, mutation.__name__, mutation(rng, path.read_bytes())


def read(path: Path) -> str:
    """Read and prepare all that a path stands for, as the runtime does.

    Return ``frames``, or the code of the first error.
    """
    from medtl_runtime.errors import ScanError
    from medtl_runtime.reading import expand, read_scan
    from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe

    window = HeaderVoi(fallback=FixedWindow(centre=128, width=256))
    outcome = "frames"
    try:
        for source in expand([str(path)]):
            if isinstance(source, ScanError):
                outcome = source.code
                continue
            for frame in read_scan(source).frames():
                channels = 3 if frame.is_colour else 1
                Recipe(size=(64, 64), channels=channels, window=window).apply(frame, "scan")
    except ScanError as error:
        return error.code
    except BaseException as error:  # a decoder's panic is no Exception
        return f"FINDING {type(error).__name__}: {str(error)[:100]}"
    return outcome


def child(files: list[Path], seed: int) -> None:
    """Read the mutations whose numbers come on standard input; print a line for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    syntaxes: dict[Path, str] = {}
    folder = Path(tempfile.mkdtemp(dir=files[-1].parent))
    for line in sys.stdin:
        path, kind, data = mutated(files, seed, int(line))
        if path not in syntaxes:
            syntaxes[path] = syntax_of(path)
        damaged = folder / _damaged_name(path)
        damaged.write_bytes(data)
        memory = _forget_peak()
        started = time.perf_counter()
        outcome = read(damaged)
        row = {
            "number": int(line),
            "file": path.name,
            "syntax": syntaxes[path],
            "kind": kind,
            "outcome": outcome,
            "seconds": time.perf_counter() - started,
            "memory": _peak(),
            "grown": _peak() - memory,
        }
        answers.write(json.dumps(row) + "\n")
        answers.flush()


def _damaged_name(path: Path) -> str:
    return path.name if path.name == "DICOMDIR" else "scan"  # an index is told by its name


def syntax_of(path: Path) -> str:
    """Return the name of a file's transfer syntax, or of its format."""
    from medtl_runtime.reading import read_scan

    if path.suffix in MADE or path.name in MADE:
        return path.suffix or path.name
    return UID(read_scan(path).header.transfer_syntax_uid).name


def _processes() -> list[Path]:
    """Return this process and the decoder that it has running apart, in /proc."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [Path("/proc/self"), *(Path("/proc", number) for number in children)]


def _forget_peak() -> int:
    """Make the processes' peak memory start again from what they have now, and return that."""
    for process in _processes():
        (process / "clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Return the largest peak of the processes, in bytes."""
    statuses = [(process / "status").read_text() for process in _processes()]
    found = [text.split("VmHWM:")[1].split()[0] for text in statuses if "VmHWM:" in text]
    return 1024 * max(map(int, found))


# --- the parent


def corpus(folders: list[Path]) -> list[Path]:
    """Return the DICOM files of which frames can be read, and that are not too large."""
    from medtl_runtime.errors import ScanError
    from medtl_runtime.reading import files_below, read_scan

    found = []
    for path in (path for folder in folders for path in files_below(folder)):
        try:
            if path.stat().st_size <= LARGEST and read_scan(path).header.is_dicom:
                found.append(path)
        except ScanError:
            continue
    return found


MADE = (".png", ".jpg", ".npy", ".zip", "DICOMDIR")
"""Endings or names of the files that are no single DICOM object."""


def made(folder: Path) -> list[Path]:
    """Write small files of the other formats, always the same, and return them."""
    import numpy as np
    from PIL import Image

    grey = (np.add.outer(np.arange(60), np.arange(50)) * 2).astype(np.uint8)
    colour = Image.fromarray(np.stack([grey, grey.T[:50].repeat(2, 0)[:60, :50], grey], axis=-1))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey.png")
    colour.save(folder / "colour.png")
    colour.convert("P").save(folder / "palette.png", transparency=3)
    colour.save(folder / "colour.jpg")
    Image.fromarray(grey).save(folder / "progressive.jpg", progressive=True)
    np.save(folder / "array.npy", grey.astype(np.int16))
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.dcm", (SHIPPED / "MR_small_RLE.dcm").read_bytes())
        archive.write(folder / "colour.png", "b.png")
    index = (SHIPPED / "dicomdirtests/DICOMDIR").read_bytes()
    (folder / "DICOMDIR").write_bytes(index)
    return sorted(folder.iterdir())


class Watched:
    """A child process, and what becomes of each number that it is given."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, number: int) -> dict[str, Any]:
        """Return the row of a mutation, whatever it does to the child."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--child", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], HANGS)
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        process.kill()
        status = process.wait()
        self._process = None
        outcome = f"FINDING crash ({-status})" if ready else f"FINDING hang of {HANGS:.0f} s"
        return {"number": number, "outcome": outcome, "seconds": 0.0, "memory": 0, "grown": 0}

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def run(count: int, jobs: int, arguments: list[str]) -> list[dict[str, Any]]:
    """Return the row of each mutation."""
    numbers = iter(range(count))
    lock = threading.Lock()
    rows: list[dict[str, Any]] = []

    def work() -> None:
        watched = Watched(arguments)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            row = watched.outcome(number)
            if row["seconds"] > LONGEST:  # the machine may have had other things to do
                again = watched.outcome(number)
                row = min(row, again, key=lambda one: one["seconds"]) | {
                    "tries": [row["seconds"], again["seconds"]]
                }
            with lock:
                rows.append(row)
        watched.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


def finding(row: dict[str, Any]) -> str | None:
    """Return what is wrong with an outcome, if something is."""
    if row["outcome"].startswith("FINDING"):
        return row["outcome"].removeprefix("FINDING ")
    if row["seconds"] > LONGEST:
        return f"{row['seconds']:.1f} s"
    if row["memory"] > MOST_MEMORY:
        return f"{row['memory'] >> 20} MiB"
    return None


def summary(rows: list[dict[str, Any]], files: list[Path], seconds: float) -> dict[str, Any]:
    """Return the counts."""
    complete = [row for row in rows if "syntax" in row]
    slowest = max(complete, key=lambda row: row["seconds"])
    largest = max(complete, key=lambda row: row["memory"])
    return {
        "mutations": len(rows),
        "files": len(files),
        "seconds": round(seconds, 1),
        "outcomes": Counter(row["outcome"] for row in rows),
        "by_syntax": _crossed(complete, "syntax"),
        "by_mutation": _crossed(complete, "kind"),
        "slowest": {k: slowest[k] for k in ("number", "file", "kind", "seconds", "outcome")},
        "largest": {k: largest[k] for k in ("number", "file", "kind", "memory", "outcome")},
        "slow_once": [
            {k: row[k] for k in ("number", "file", "kind", "tries")}
            for row in complete
            if "tries" in row and not finding(row)
        ],
        "findings": [row | {"finding": finding(row)} for row in rows if finding(row)],
    }


def _crossed(rows: list[dict[str, Any]], key: str) -> dict[str, Counter[str]]:
    names = sorted({row[key] for row in rows})
    return {name: Counter(r["outcome"] for r in rows if r[key] == name) for name in names}


def show(found: dict[str, Any]) -> None:
    """Print the counts as a table."""
    codes = sorted(found["outcomes"])
    print(f"{found['mutations']} mutations of {found['files']} files in {found['seconds']} s")
    width = max(len(name) for name in [*found["by_syntax"], *found["by_mutation"]])
    for title in ("by_syntax", "by_mutation"):
        print(f"\n{title.replace('_', ' '):{width}}  " + "  ".join(f"{code:>20}" for code in codes))
        for name, counts in found[title].items():
            print(f"{name:{width}}  " + "  ".join(f"{counts.get(code, 0):>20}" for code in codes))
    for title, row in (("slowest", found["slowest"]), ("most memory", found["largest"])):
        size = f"{row['seconds']:.2f} s" if "seconds" in row else f"{row['memory'] >> 20} MiB"
        print(f"{title}: {size}, number {row['number']} ({row['kind']} of {row['file']})")
    for row in found["slow_once"]:
        tries = " and ".join(f"{seconds:.2f} s" for seconds in row["tries"])
        print(f"slow in one of two tries: {tries}, number {row['number']} ({row['kind']})")
    print(f"findings: {len(found['findings'])}")
    for row in found["findings"][:40]:
        print(f"  {row['number']}: {row['finding']} {row.get('kind', '')} {row.get('file', '')}")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="mutations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data", type=Path, action="append", default=[], help="more real files")
    parser.add_argument("--json", type=Path, help="write the counts and findings there")
    parser.add_argument("--repeat", type=int, metavar="NUMBER", help="read one in this process")
    parser.add_argument("--save", type=Path, help="with --repeat: write the damaged file there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's, of what is odd in the files
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        others = made(Path(folder))
        fuzz(chosen, [*corpus([SHIPPED, *chosen.data]), *others * 4])


def fuzz(chosen: argparse.Namespace, files: list[Path]) -> None:
    """Do what was chosen on the command line."""
    if chosen.child:
        child(files, chosen.seed)
        return
    if chosen.repeat is not None:
        path, kind, data = mutated(files, chosen.seed, chosen.repeat)
        if chosen.save:
            chosen.save.write_bytes(data)
        print(f"{kind} of {path}")
        damaged = files[-1].parent / f"damaged/{_damaged_name(path)}"
        damaged.parent.mkdir()
        damaged.write_bytes(data)
        print(read(damaged))
        return
    arguments = ["--seed", str(chosen.seed), *(f"--data={folder}" for folder in chosen.data)]
    started = time.perf_counter()
    rows = run(chosen.count, chosen.jobs, arguments)
    found = summary(rows, files, time.perf_counter() - started)
    show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))
    sys.exit(bool(found["findings"]))


if __name__ == "__main__":
    main()
