"""Sequences of a DICOM header (PS3.5 7.5), within a budget, and no more than is asked for."""

from collections.abc import MutableSequence, Sequence
from io import BytesIO
from struct import unpack_from
from typing import Any, BinaryIO, cast

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from medtl_runtime.fragments import UNDEFINED
from medtl_runtime.limits import Budget, BudgetedFile

_SEQUENCE_DELIMITER = 0xFFFE, 0xE0DD


def parse_items(
    raw: RawDataElement,
    tags: Sequence[BaseTag | int],
    budget: Budget,
    encoding: str | MutableSequence[str],
) -> list[Dataset]:
    """Return the items of a sequence that was read as bytes, each with the attributes of ``tags``.

    pydicom would parse all their attributes, when the sequence is first looked at.

    Raises
    ------
    ScanTooLarge
        The budget is spent.
    Exception
        What damaged items lead to.
    """
    value = cast(bytes, raw.value or b"")
    foreign = raw.VR == "UN"  # from software that did not know it: encoded as in PS3.5 6.2.2
    options: dict[str, Any] = {
        "is_implicit_VR": foreign or raw.is_implicit_VR,
        "is_little_endian": foreign or raw.is_little_endian,
        "parent_encoding": encoding,
        "specific_tags": list(tags),
        "at_top_level": False,
    }
    layout = "<HHL" if options["is_little_endian"] else ">HHL"
    whole = BytesIO(value)
    items: list[Dataset] = []
    at = 0
    while at < len(value):
        group, element, length = unpack_from(layout, value, at)
        if (group, element) == _SEQUENCE_DELIMITER:
            break
        budget.spend_item()
        at += 8
        if length == UNDEFINED:  # up to its delimiter
            whole.seek(at)
            items.append(read_dataset(cast(BinaryIO, BudgetedFile(whole, budget)), **options))
            at = whole.tell()
        else:
            # Of its own bytes: pydicom would skip what is not asked for into the next item.
            item = BytesIO(value[at : at + length])
            items.append(read_dataset(cast(BinaryIO, BudgetedFile(item, budget)), **options))
            at += length
    return items
