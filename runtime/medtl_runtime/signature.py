"""Signs a model file and verifies its signature: Ed25519 (RFC 8032), inside the one file.

A signature is the last field of the file, one more entry of ``metadata_props``, whose value names
the algorithm, the public key and the signature of everything before the field. Engines ignore it.

    openssl genpkey -algorithm ed25519 -out private.pem
    openssl pkey -in private.pem -pubout -out public.pem

The key inside a file says only who claims to have signed it; trust comes from a public key that
arrived by another way.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from medtl_runtime.errors import ExtraMissing, ModelUntrusted, UsageError
from medtl_runtime.onnxfile import ModelBytes, inspect_model
from medtl_runtime.onnxwire import metadata_entry, without_metadata

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE_KEY = "medtl.signature"
ALGORITHM = "Ed25519"

_CONTEXT = b"medtl model file v1\0"
"""Put before what is signed, so that a signature for another purpose never fits."""

_MOST_KEY_BYTES = 2**16


def sign(data: bytes, key: "Ed25519PrivateKey") -> bytes:
    """Return a serialised model with its signature behind it; an older signature is replaced.

    Raises
    ------
    ModelUnusable
        What would be signed is no model that the runtime takes.
    """
    inspect_model(data, Path("what is to be signed"))
    unsigned = without_metadata(data, SIGNATURE_KEY)
    public, signature = key.public_key().public_bytes_raw(), key.sign(_CONTEXT + unsigned)
    return unsigned + _entry(public, signature)


def verify(model: ModelBytes, public_key: Path) -> None:
    """Return if the file is signed by the private half of a key and unchanged since.

    Parameters
    ----------
    model
        The file.
    public_key
        The key, as `read_public_key` reads it.

    Raises
    ------
    ModelUntrusted
        No signature, one by another key, or a file that was changed since it was signed.
    UsageError, ExtraMissing
        As for `read_public_key`.
    """
    key = read_public_key(public_key)
    if SIGNATURE_KEY not in model.metadata:
        raise ModelUntrusted(
            f"{model.path} is not signed; expected a signature by {fingerprint(key)}"
        )
    claimed = _claimed(model.metadata[SIGNATURE_KEY])
    if claimed is None:
        raise ModelUntrusted(f"{model.path} has a damaged signature, or one of another kind")
    public, signature = claimed
    if public != key.public_bytes_raw():
        found = f"signed by {_fingerprint(public)}; expected {fingerprint(key)}"
        raise ModelUntrusted(f"{model.path} is {found}")
    from cryptography.exceptions import InvalidSignature

    entry = _entry(public, signature)
    try:
        if not model.data.endswith(entry):  # something was put behind it
            raise InvalidSignature
        signed = memoryview(model.data)[: -len(entry)]
        key.verify(signature, b"".join((_CONTEXT, signed)))
    except InvalidSignature as cause:
        raise ModelUntrusted(f"{model.path} was changed since it was signed") from cause


def claimed_signer(model: ModelBytes) -> str | None:
    """Return the fingerprint of the key that a file names, which proves nothing, or None."""
    claimed = _claimed(model.metadata.get(SIGNATURE_KEY, ""))
    return None if claimed is None else _fingerprint(claimed[0])


def fingerprint(key: "Ed25519PublicKey") -> str:
    """Return a short name of a key: ``ed25519:`` and 64 bits of the SHA-256 of its 32 bytes."""
    return _fingerprint(key.public_bytes_raw())


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Read a private key in PEM form, without a passphrase.

    Raises
    ------
    UsageError
        It cannot be read, is encrypted, or is not an Ed25519 private key.
    ExtraMissing
        The package cryptography is not installed.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _content(path)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as cause:
        raise UsageError(f"{path} is encrypted; expected a key without a passphrase") from cause
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise UsageError(f"{path} holds no Ed25519 private key in PEM form") from cause
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a private key of another kind; expected Ed25519")
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """Read a public key in PEM form.

    Raises
    ------
    UsageError
        It cannot be read or is not an Ed25519 public key.
    ExtraMissing
        The package cryptography is not installed.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _content(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise UsageError(f"{path} holds no Ed25519 public key in PEM form") from cause
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a public key of another kind; expected Ed25519")
    return key


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as cause:
        raise ExtraMissing("cryptography", extra="sign", purpose="a signature") from cause


def _content(path: Path) -> bytes:
    # A key may well come through a pipe, so it need not be a regular file; it is only short.
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_KEY_BYTES + 1)
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror}") from cause
    if len(content) > _MOST_KEY_BYTES:
        raise UsageError(f"{path} is too long for a key")
    return content


def _entry(public: bytes, signature: bytes) -> bytes:
    """Return the field that follows what is signed; there is one way to write it."""
    value = {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    return metadata_entry(SIGNATURE_KEY, json.dumps(value))


def _claimed(value: str) -> tuple[bytes, bytes] | None:
    """Return public key and signature as the value says, or None if it is malformed."""
    try:
        claim = json.loads(value)
        if claim["algorithm"] != ALGORITHM:
            return None
        public, signature = claim["public_key"], claim["signature"]
        return base64.b64decode(public, validate=True), base64.b64decode(signature, validate=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _fingerprint(public: bytes) -> str:
    return "ed25519:" + hashlib.sha256(public).hexdigest()[:16]
