"""What becomes of real files: read, refused or in error, by transfer syntax.

    python benchmarks/corpus.py [--markdown] [FOLDER...]

Without folders, the files that pydicom ships. All frames of each file are decoded. Files without
a transfer syntax are counted by what they are not.
"""

import argparse
import logging
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pydicom.data
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from medtl_runtime.errors import ScanError
from medtl_runtime.reading import files_below, read_scan

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one file."""

    syntax: str
    outcome: str
    """``read``, or the code of the error."""
    reason: str
    frames: int


def read(path: Path) -> Row:
    """Decode all frames of a file."""
    syntax, frames = "", 0
    try:
        scan = read_scan(path)
        syntax = scan.header.transfer_syntax_uid
        for _ in scan.frames():
            frames += 1
    except ScanError as error:
        syntax = syntax or syntax_in(path)
        return Row(syntax=name_of(syntax), outcome=error.code, reason=error.reason, frames=frames)
    return Row(syntax=name_of(syntax), outcome="read", reason="", frames=frames)


def syntax_in(path: Path) -> str:
    """Return the transfer syntax in a file's meta header, if it has one."""
    try:
        return str(read_file_meta_info(path).TransferSyntaxUID)
    except Exception:
        return ""


def name_of(syntax: str) -> str:
    """Return the name of a transfer syntax, shortened, with the end of its UID."""
    if not syntax:
        return "no DICOM meta header"
    known = {"1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression"}
    name = known.get(syntax, UID(syntax).name).partition(" (Process")[0]
    return f"{name} ({syntax.removeprefix('1.2.840.10008')})"


def show(rows: list[Row], markdown: bool) -> None:
    """Print a line for each transfer syntax, then why files were not read."""
    by_syntax: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_syntax[row.syntax].append(row)
    codes = ["read", *sorted({row.outcome for row in rows} - {"read"})]
    head = ["transfer syntax", "files", "frames", *codes]
    table = [
        [name, str(len(found)), str(sum(row.frames for row in found))]
        + [str(Counter(row.outcome for row in found)[code]) for code in codes]
        for name, found in sorted(by_syntax.items())
    ]
    total = [str(len(rows)), str(sum(row.frames for row in rows))]
    table.append(["all", *total, *(str(sum(r.outcome == c for r in rows)) for c in codes)])
    _print(head, table, markdown)
    why = Counter((row.outcome, row.reason) for row in rows if row.outcome != "read")
    print()
    _print(
        ["files", "outcome", "why"],
        [[str(count), code, reason] for (code, reason), count in why.most_common()],
        markdown,
    )


def _print(head: list[str], table: list[list[str]], markdown: bool) -> None:
    widths = [max(len(row[column]) for row in [head, *table]) for column in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    first = [cell.ljust(width) for cell, width in zip(head, widths, strict=True)]
    edge = "| " if markdown else ""
    between = " | " if markdown else "  "
    print(edge + between.join(first).rstrip() + (" |" if markdown else ""))
    if markdown:
        print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for line in lines:
        print(edge + between.join(line).rstrip() + (" |" if markdown else ""))


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's, of what is odd in the files
    logging.disable()
    files = [path for folder in chosen.folders or [SHIPPED] for path in files_below(folder)]
    show([read(path) for path in files], chosen.markdown)


if __name__ == "__main__":
    main()
