"""Which package decodes a compressed frame, how it is called, and which one is missing."""

from functools import cache
from importlib.machinery import PathFinder
from struct import pack
from typing import Any

from numpy.typing import NDArray
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.decoders.gdcm import DECODER_DEPENDENCIES as GDCM_DECODES
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from medtl_runtime.fragments import END_OF_IMAGE

Stored = tuple[NDArray, str]
"""Stored values, H x W or H x W x samples, and the photometric interpretation that they are in:
colour comes as RGB, whatever it was."""

# The first that is installed decodes, and the others are not tried. gdcm is left to the JPEG
# processes that no other package here decodes.
_PLUG_INS = ("pyjpegls", "pylibjpeg", "pillow", "gdcm", "pydicom")

_PACKAGES = {
    **dict.fromkeys(map(str, JPEGLSTransferSyntaxes), "pyjpegls"),
    **dict.fromkeys(map(str, JPEG2000TransferSyntaxes), "pylibjpeg-openjpeg"),
    str(RLELossless): "pylibjpeg-rle",
}
"""The package to install, of those under a permissive licence; the JPEG processes that are not
here are left to python-gdcm. pydicom would also name pylibjpeg-libjpeg, which is under the GPL."""


def decode_frame(
    encoded: bytes, transfer_syntax: str, plug_in: str, options: dict[str, Any]
) -> Stored:
    """Decode one compressed frame with one of pydicom's plug-ins.

    Parameters
    ----------
    encoded
        The frame's bytes, without items.
    transfer_syntax
        A syntax that pydicom knows.
    plug_in
        The name of an installed plug-in for it.
    options
        The Image Pixel module as pydicom's decoders take it.

    Raises
    ------
    Exception
        Whatever the plug-in lets through on damaged data.
    """
    if transfer_syntax in JPEGLSTransferSyntaxes:
        # pyjpegls 1.5 searches for seconds where a stream that is cut short has no end; with one,
        # it sees at once that data are missing.
        encoded += END_OF_IMAGE
    padded = encoded + b"\0" * (len(encoded) % 2)
    items = pack("<HHLHHL", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(padded)) + padded
    options = {**options, "number_of_frames": 1}
    stored, found = get_decoder(transfer_syntax).as_array(
        items, raw=False, index=0, decoding_plugin=plug_in, **options
    )
    return stored, str(found["photometric_interpretation"])


def plug_in_for(decoder: Decoder) -> str:
    """Return the plug-in that decodes; empty where none is installed."""
    found = (*decoder.available_plugins, *(("gdcm",) if has_gdcm(decoder.UID) else ()))
    return next((p for p in _PLUG_INS if p in found), "")


def has_gdcm(syntax: str) -> bool:
    """Whether gdcm is installed, and decodes a syntax; it need not be loaded in this process."""
    return syntax in GDCM_DECODES and _gdcm_is_installed()


@cache  # it is asked for every frame, and the answer is in the file system
def _gdcm_is_installed() -> bool:
    return PathFinder.find_spec("gdcm") is not None


def install_hint(decoder: Decoder) -> str:
    """Return what to install for a transfer syntax, as one line."""
    package = _PACKAGES.get(str(decoder.UID), "python-gdcm")
    found = f"no decoder is installed for {decoder.UID.name}"
    if plug_in_for(decoder):
        found = f"no installed decoder takes {decoder.UID.name} of this bit depth"
    return f'{found}: pip install "medtl[codecs]", which brings {package}'
