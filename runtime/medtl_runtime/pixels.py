"""Pixel data to stored values, one frame in memory at a time (PS3.5 sections 8 and A.4).

Pixel data are left in their file until a frame is asked for. What the header claims is held against
the bytes that are there, and against what a compressed frame says of itself, before a decoder is
called. gdcm, which aborts the whole process on some damaged streams, decodes in a process of its
own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    RLELossless,
)

from medtl_runtime.codestream import least_bytes, missing_tiles, size_of
from medtl_runtime.decoders import Stored, decode_frame, has_gdcm, install_hint, plug_in_for
from medtl_runtime.errors import DecoderMissing, ScanError, ScanUnreadable
from medtl_runtime.fragments import UNDEFINED, Fragment, find_frames, read_frame
from medtl_runtime.limits import inflate

# pydicom 3.0 does not know these two (PS3.5 A.4.11 and A.4.13): frames of native pixels.
_ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_NATIVE_FRAMES = (_ENCAPSULATED_UNCOMPRESSED, _DEFLATED_FRAMES)


_SLOWEST = 50_000_000
"""Bits of decoded pixels a second, a tenth of what gdcm was measured at on a slow core."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelData:
    """Where the pixel data of a data set are, and what its header says of them."""

    source: str
    transfer_syntax: str
    open: Callable[[], AbstractContextManager[BinaryIO]] = field(repr=False)
    """Opens the file that holds them."""
    offset: int
    """Of the element's value in that file."""
    length: int
    """Of the value; `fragments.UNDEFINED` where a delimiter ends it."""
    options: dict[str, Any]
    """The Image Pixel module (PS3.3 C.7.6.3) as pydicom's decoders take it."""

    @property
    def frame_bits(self) -> int:
        """Size of a frame that is not compressed."""
        shape = self.options["rows"] * self.options["columns"] * self.options["samples_per_pixel"]
        if self.options.get("photometric_interpretation") == "YBR_FULL_422":
            shape = shape // 3 * 2
        return shape * self.options["bits_allocated"]

    @property
    def holds_words(self) -> bool:
        """Whether values lie in words of BitsAllocated, and not in a codestream of their own."""
        syntax = UID(self.transfer_syntax)
        plain = (*_NATIVE_FRAMES, RLELossless)
        return syntax in plain or not (syntax.is_transfer_syntax and syntax.is_encapsulated)

    @cached_property
    def encoded(self) -> list[list[Fragment]]:
        """The fragments of each frame of encapsulated pixel data."""
        with self.open() as file:
            file.seek(self.offset)
            return find_frames(
                file,
                self.source,
                length=self.length,
                count=self.options["number_of_frames"],
                extended=self.options.get("extended_offsets"),
            )


def stored_frames(pixels: PixelData, indices: Sequence[int]) -> Iterator[Stored]:
    """Yield the stored values of frames.

    Raises
    ------
    ScanUnreadable
        The pixel data is damaged or cut short, or its transfer syntax unknown.
    DecoderMissing
        No installed package decodes it.
    ScanTooLarge
        It is in more pieces than are taken in.
    """
    syntax = UID(pixels.transfer_syntax)
    if len(indices) == 0:  # pydicom takes no indices for all
        frames: Iterator[Stored] = iter(())
    elif syntax in _NATIVE_FRAMES:
        frames = _encapsulated_frames(pixels, indices, _native_frame)
    else:
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError as cause:
            raise ScanUnreadable(pixels.source, f"unknown transfer syntax {syntax}") from cause
        if not (decoder.is_native or plug_in_for(decoder)):
            raise DecoderMissing(pixels.source, install_hint(decoder))
        if decoder.is_native:
            frames = _native_frames(pixels, indices, decoder)
        else:
            frames = _encapsulated_frames(pixels, indices, _compressed_frame)
    return _named(frames, pixels, syntax)


def _named(frames: Iterator[Stored], pixels: PixelData, syntax: UID) -> Iterator[Stored]:
    """Pass on frames, and give every failure its name."""
    while True:
        try:
            frame = next(frames)
            _require_known_colours(*frame, pixels.source)
            yield frame
        except (StopIteration, ScanError) as end:
            if isinstance(end, ScanError):
                raise
            return
        except BaseException as cause:
            # A decoder in Rust panics on damaged data, and its exception is no `Exception`.
            if not isinstance(cause, Exception) and type(cause).__name__ != "PanicException":
                raise
            if isinstance(cause, OSError) and cause.errno is not None:
                raise ScanUnreadable(pixels.source, cause.strerror or "cannot be read") from cause
            # pydicom's words for: installed, but not for this bit depth.
            if "does not support" in str(cause):
                raise DecoderMissing(pixels.source, install_hint(get_decoder(syntax))) from cause
            name = syntax.name if syntax.is_transfer_syntax else str(syntax)
            reason = f"the pixel data cannot be decoded ({name})"
            raise ScanUnreadable(pixels.source, reason) from cause


def _require_known_colours(stored: NDArray, photometric: str, source: str) -> None:
    """Raise for what is neither grey, nor from a palette, nor RGB after decoding."""
    known = ("RGB",) if stored.ndim == 3 else ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    if photometric not in known:
        samples = stored.shape[2] if stored.ndim == 3 else 1
        raise ScanUnreadable(
            source,
            f"the PhotometricInterpretation does not go with {samples} samples per pixel; "
            f"expected {', '.join(known)} after decoding",
            attribute="PhotometricInterpretation",
            found=photometric,
            expected=list(known),
        )


def _native_frames(pixels: PixelData, indices: Sequence[int], decoder: Decoder) -> Iterator[Stored]:
    count = pixels.options["number_of_frames"]
    with pixels.open() as file:
        _require_bytes(pixels, file, ceil(pixels.frame_bits * count / 8))
        file.seek(pixels.offset)
        if pixels.options["bits_allocated"] == 1:
            yield from _bit_frames(pixels, indices, file)
            return
        # Without explicit indices pydicom 3.0 corrects signs in place in read-only memory, and
        # fails.
        frames = decoder.iter_array(file, raw=False, indices=indices, **pixels.options)
        for stored, found in frames:
            yield stored, str(found["photometric_interpretation"])


def _require_bytes(pixels: PixelData, file: BinaryIO, needed: int) -> None:
    """Raise unless the pixel data hold ``needed`` bytes; what is beyond is padding."""
    if pixels.length == UNDEFINED:
        raise ScanUnreadable(pixels.source, "native pixel data of undefined length")
    held = max(0, min(pixels.length, file.seek(0, 2) - pixels.offset))
    whole = pixels.length - 1  # some writers leave out the byte that makes the length even
    if held < max(needed, whole):
        raise ScanUnreadable(
            pixels.source,
            f"the pixel data is cut short: {held} of {max(needed, whole)} bytes",
            attribute="PixelData",
            found=held,
            expected=max(needed, whole),
        )
    if pixels.options["photometric_interpretation"] == "YBR_FULL_422" and held >= needed // 2 * 3:
        raise ScanUnreadable(
            pixels.source,
            "the pixel data is not subsampled, as YBR_FULL_422 says",
            attribute="PhotometricInterpretation",
            found="YBR_FULL_422",
        )


def _bit_frames(pixels: PixelData, indices: Sequence[int], file: BinaryIO) -> Iterator[Stored]:
    """Yield frames of one bit a pixel; they need not start on a byte (PS3.5 8.1.1)."""
    for index in indices:
        first, skipped = divmod(index * pixels.frame_bits, 8)
        file.seek(pixels.offset + first)
        packed = file.read(ceil((skipped + pixels.frame_bits) / 8))
        yield _unpacked(packed, pixels.options, skipped)


def _unpacked(packed: bytes, options: dict[str, Any], skipped: int = 0) -> Stored:
    shape = options["rows"], options["columns"]
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    stored = bits[skipped : skipped + shape[0] * shape[1]].reshape(shape)
    return stored, str(options["photometric_interpretation"])


# --- encapsulated pixel data


def _encapsulated_frames(
    pixels: PixelData,
    indices: Sequence[int],
    decode: Callable[[bytes, PixelData], Stored],
) -> Iterator[Stored]:
    if len(pixels.encoded) < pixels.options["number_of_frames"]:
        raise ScanUnreadable(
            pixels.source,
            "the pixel data holds fewer frames than the header says",
            attribute="NumberOfFrames",
            found=pixels.options["number_of_frames"],
            expected=len(pixels.encoded),
        )
    with pixels.open() as file:
        for index in indices:
            encoded = read_frame(file, pixels.encoded[index], pixels.source)
            if len(encoded) < least_bytes(pixels.frame_bits // 8, pixels.transfer_syntax):
                raise ScanUnreadable(pixels.source, "the compressed frame is cut short")
            yield decode(encoded, pixels)


def _native_frame(encoded: bytes, pixels: PixelData) -> Stored:
    """Decode a frame that is deflated (PS3.5 8.2.16), or not compressed (8.2.15)."""
    needed = ceil(pixels.frame_bits / 8)
    if pixels.transfer_syntax == _DEFLATED_FRAMES:
        encoded = inflate(encoded, needed + 1, pixels.source)
    if not needed <= len(encoded) <= needed + 1:  # an even number, padded if need be
        raise ScanUnreadable(pixels.source, f"a frame is not of {needed} bytes")
    if pixels.options["bits_allocated"] == 1:
        return _unpacked(encoded, pixels.options)
    options = {**pixels.options, "number_of_frames": 1}
    decoder = get_decoder(ExplicitVRLittleEndian)
    stored, found = decoder.as_array(encoded, raw=False, index=0, **options)
    return stored, str(found["photometric_interpretation"])


def _compressed_frame(encoded: bytes, pixels: PixelData) -> Stored:
    options = {k: v for k, v in pixels.options.items() if k != "extended_offsets"}
    _require_size(encoded, pixels)
    if missing := missing_tiles(encoded, pixels.transfer_syntax):
        raise ScanUnreadable(pixels.source, f"the compressed frame lacks {missing} of its tiles")
    syntax = pixels.transfer_syntax
    if syntax == RLELossless and options["bits_allocated"] == 1:
        return _rle_bits(encoded, options)
    plug_in = plug_in_for(get_decoder(syntax))
    if syntax == JPEGExtended12Bit and options["bits_stored"] > 8 and has_gdcm(syntax):
        # pydicom 3.0 refuses gdcm more than 8 bits of this process. gdcm takes the process from
        # the stream, not from the transfer syntax, and decodes it well under another one.
        syntax, plug_in = str(JPEGLossless), "gdcm"
    if plug_in != "gdcm":
        return decode_frame(encoded, syntax, plug_in, options)
    from medtl_runtime.isolated import decoding_worker

    seconds = 5 + pixels.frame_bits / _SLOWEST
    return decoding_worker().call(
        "decode_frame", encoded, syntax, plug_in, options, source=pixels.source, seconds=seconds
    )


def _require_size(encoded: bytes, pixels: PixelData) -> None:
    """Raise unless the codestream is of the size that the header gives."""
    found = size_of(encoded, pixels.transfer_syntax)
    if found is None:
        return
    rows, columns = pixels.options["rows"], pixels.options["columns"]
    if (found.rows, found.columns) != (rows, columns):
        raise ScanUnreadable(
            pixels.source,
            f"the compressed frame has {found.rows} x {found.columns} pixels; "
            f"the header says {rows} x {columns}",
            attribute="Rows x Columns",
            found=f"{found.rows} x {found.columns}",
            expected=f"{rows} x {columns}",
        )
    samples = pixels.options["samples_per_pixel"]
    if found.samples != samples:
        raise ScanUnreadable(
            pixels.source,
            f"the compressed frame has {found.samples} samples per pixel; "
            f"the header says {samples}",
            attribute="SamplesPerPixel",
            found=found.samples,
            expected=samples,
        )


def _rle_bits(encoded: bytes, options: dict[str, Any]) -> Stored:
    """Decode one bit a pixel: RLE packs the bytes that hold them, and knows no pixels."""
    packed = {
        **options,
        "rows": 1,
        "columns": ceil(options["rows"] * options["columns"] / 8),
        "bits_allocated": 8,
        "bits_stored": 8,
    }
    decoder = get_decoder(RLELossless)
    stored, _ = decode_frame(encoded, RLELossless, plug_in_for(decoder), packed)
    return _unpacked(stored.tobytes(), options)
