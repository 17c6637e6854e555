"""Signatures of model files, with OpenSSL as the second opinion."""

import base64
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medtl_runtime.engines import Session
from medtl_runtime.errors import ExtraMissing, ModelUntrusted, ModelUnusable, UsageError
from medtl_runtime.onnxfile import inspect_model
from medtl_runtime.onnxwire import metadata_entry
from medtl_runtime.signature import (
    SIGNATURE_KEY,
    claimed_signer,
    fingerprint,
    read_private_key,
    read_public_key,
    sign,
    verify,
)

PATH = Path("m.onnx")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> bytes:
    return tiny_model.read_bytes()


@pytest.fixture(scope="module")
def signed(plain: bytes) -> bytes:
    return sign(plain, KEY)


def private_pem(key, passphrase: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


Check = Callable[..., None]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Return a function that verifies bytes with the public half of a key, by default of KEY."""
    folder = tmp_path_factory.mktemp("keys")

    def verified(data: bytes, key: Ed25519PrivateKey = KEY) -> None:
        path = folder / "public.pem"
        path.write_bytes(public_pem(key))
        verify(inspect_model(data, PATH), path)

    return verified


# --- files


def test_a_signed_file_is_trusted_with_its_key(check: Check, signed: bytes) -> None:
    check(signed)


def test_a_signature_is_one_field_behind_the_unchanged_file(plain: bytes, signed: bytes) -> None:
    assert signed.startswith(plain)
    entries = {entry.key: entry.value for entry in onnx.load_from_string(signed).metadata_props}
    assert json.loads(entries[SIGNATURE_KEY])["algorithm"] == "Ed25519"
    del entries[SIGNATURE_KEY]
    assert entries == inspect_model(plain, PATH).metadata


def test_a_signed_file_is_a_valid_model_that_computes_the_same(plain: bytes, signed: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(signed))
    images = np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32)
    before, after = (Session(data, device="cpu", threads=1).run(images) for data in (plain, signed))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_the_digest_is_that_of_the_signed_file(plain: bytes, signed: bytes) -> None:
    assert inspect_model(signed, PATH).digest != inspect_model(plain, PATH).digest


def test_an_unsigned_file_is_not_trusted(check: Check, plain: bytes) -> None:
    with pytest.raises(ModelUntrusted, match=r"m\.onnx is not signed; .* by ed25519:[0-9a-f]{16}$"):
        check(plain)
    assert claimed_signer(inspect_model(plain, PATH)) is None


def test_a_file_signed_by_another_key_is_not_trusted(check: Check, signed: bytes) -> None:
    expected, found = fingerprint(OTHER.public_key()), fingerprint(KEY.public_key())
    with pytest.raises(ModelUntrusted, match=f"signed by {found}; expected {expected}"):
        check(signed, OTHER)
    assert claimed_signer(inspect_model(signed, PATH)) == found


def test_a_file_that_claims_a_key_it_was_not_signed_by_is_not_trusted(
    check: Check, plain: bytes
) -> None:
    entry = sign(plain, OTHER)[len(plain) :]
    names = [
        json.loads(inspect_model(sign(plain, k), PATH).metadata[SIGNATURE_KEY])
        for k in (OTHER, KEY)
    ]
    there, claimed = (name["public_key"].encode() for name in names)
    assert entry.count(there) == 1
    with pytest.raises(ModelUntrusted, match="changed since it was signed"):
        check(plain + entry.replace(there, claimed))


def test_a_change_of_any_byte_is_found(check: Check, plain: bytes, signed: bytes) -> None:
    chance = random.Random(1)
    reached = 0
    behind = range(len(plain), len(signed))
    for position in [*chance.sample(range(len(plain)), 200), *behind]:
        data = bytearray(signed)
        data[position] ^= 1 << chance.randrange(8)
        with pytest.raises((ModelUnusable, ModelUntrusted)) as caught:
            check(bytes(data))
        reached += caught.type is ModelUntrusted
    assert reached > 150


def test_what_is_put_behind_the_signature_is_found(check: Check, signed: bytes) -> None:
    with pytest.raises(ModelUntrusted, match="changed since it was signed"):
        check(signed + metadata_entry("more", "text"))


def test_what_is_put_before_the_file_is_found(check: Check, signed: bytes) -> None:
    with pytest.raises(ModelUntrusted, match="changed since it was signed"):
        check(metadata_entry("more", "text") + signed)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "[]",
        "null",
        "{}",
        '{"algorithm": "Ed25519"}',
        '{"algorithm": "none", "public_key": "", "signature": ""}',
        '{"algorithm": "Ed25519", "public_key": 1, "signature": 2}',
        '{"algorithm": "Ed25519", "public_key": "!", "signature": ""}',
        '{"algorithm": "Ed25519", "public_key": "ü", "signature": ""}',
        "[" * 100_000,
    ],
    ids=lambda value: value[:60] or "empty",
)
def test_a_malformed_signature_is_not_trusted(check: Check, plain: bytes, value: str) -> None:
    data = plain + metadata_entry(SIGNATURE_KEY, value)
    with pytest.raises(ModelUntrusted, match="a damaged signature, or one of another kind"):
        check(data)
    assert claimed_signer(inspect_model(data, PATH)) is None


def test_a_signature_written_in_another_way_is_not_trusted(
    check: Check, plain: bytes, signed: bytes
) -> None:
    value = inspect_model(signed, PATH).metadata[SIGNATURE_KEY]
    for other in (value + " ", value.replace("{", '{"note": 1, ')):
        with pytest.raises(ModelUntrusted, match="changed since"):
            check(plain + metadata_entry(SIGNATURE_KEY, other))


def test_nothing_hides_in_a_signature_that_is_written_shorter(
    check: Check, plain: bytes, signed: bytes
) -> None:
    claim = json.loads(inspect_model(signed, PATH).metadata[SIGNATURE_KEY])
    reordered = metadata_entry(SIGNATURE_KEY, json.dumps(dict(sorted(claim.items())[::-1])))
    compact = metadata_entry(SIGNATURE_KEY, json.dumps(claim, separators=(",", ":")))
    room = len(signed) - len(plain) - len(compact)
    domain = bytes([0x22, room - 2]) + b"x" * (room - 2)
    for other in (reordered, compact + domain):
        assert len(plain + other) == len(signed)
        with pytest.raises(ModelUntrusted, match="changed since"):
            check(plain + other)


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_not_trusted(
    check: Check, plain: bytes, signed: bytes, length: int
) -> None:
    claim = json.loads(inspect_model(signed, PATH).metadata[SIGNATURE_KEY])
    claim["signature"] = base64.b64encode(bytes(length)).decode()
    with pytest.raises(ModelUntrusted, match="changed since"):
        check(plain + metadata_entry(SIGNATURE_KEY, json.dumps(claim)))


def test_a_signature_of_the_bare_file_for_another_purpose_does_not_fit(
    check: Check, plain: bytes, signed: bytes
) -> None:
    claim = json.loads(inspect_model(signed, PATH).metadata[SIGNATURE_KEY])
    claim["signature"] = base64.b64encode(KEY.sign(plain)).decode()
    with pytest.raises(ModelUntrusted, match="changed since"):
        check(plain + metadata_entry(SIGNATURE_KEY, json.dumps(claim)))


def test_signing_again_replaces_the_signature(check: Check, plain: bytes, signed: bytes) -> None:
    assert sign(signed, KEY) == signed
    assert sign(signed, OTHER) == sign(plain, OTHER)
    edited = signed + metadata_entry("more", "text")
    check(sign(edited, KEY))


def test_what_is_no_model_is_not_signed(plain: bytes) -> None:
    for data in (b"", b"text", plain[:100]):
        with pytest.raises(ModelUnusable, match="what is to be signed"):
            sign(data, KEY)


# --- keys


def test_keys_come_back_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "private.pem").write_bytes(private_pem(KEY))
    (tmp_path / "public.pem").write_bytes(public_pem(KEY))
    private, public = (
        read_private_key(tmp_path / "private.pem"),
        read_public_key(tmp_path / "public.pem"),
    )
    assert private.private_bytes_raw() == KEY.private_bytes_raw()
    assert public == KEY.public_key() == private.public_key()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_verifies_the_signature(tmp_path: Path, plain: bytes) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "private.pem")
    openssl("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem")
    data = sign(plain, read_private_key(tmp_path / "private.pem"))
    verify(inspect_model(data, PATH), tmp_path / "public.pem")

    claim = json.loads(inspect_model(data, PATH).metadata[SIGNATURE_KEY])
    (tmp_path / "signature").write_bytes(base64.b64decode(claim["signature"]))
    verifying = "pkeyutl -verify -pubin -inkey public.pem -rawin -in message -sigfile signature"
    (tmp_path / "message").write_bytes(b"medtl model file v1\0" + plain)
    openssl(*verifying.split())
    (tmp_path / "message").write_bytes(b"medtl model file v1\0" + plain[:-1])
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*verifying.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no Ed25519 private key"),
        (b"text", "holds no Ed25519 private key"),
        (KEY.private_bytes_raw(), "holds no Ed25519 private key"),
        (public_pem(KEY), "holds no Ed25519 private key"),
        (private_pem(KEY)[:80], "holds no Ed25519 private key"),
        (private_pem(KEY, b"secret"), "is encrypted; expected a key without a passphrase"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "of another kind; expected Ed25519"),
        (private_pem(x25519.X25519PrivateKey.generate()), "of another kind; expected Ed25519"),
        (b"-" * 100_000, "too long for a key"),
    ],
)
def test_a_file_without_an_ed25519_private_key_is_named(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(UsageError, match=rf"key\.pem.* {words}"):
        read_private_key(tmp_path / "key.pem")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no Ed25519 public key"),
        (b"text", "holds no Ed25519 public key"),
        (private_pem(KEY), "holds no Ed25519 public key"),
        (public_pem(KEY)[:80], "holds no Ed25519 public key"),
        (public_pem(ec.generate_private_key(ec.SECP256R1())), "of another kind; expected Ed25519"),
        (b"-" * 100_000, "too long for a key"),
    ],
)
def test_a_file_without_an_ed25519_public_key_is_named(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(UsageError, match=rf"key\.pem.* {words}"):
        read_public_key(tmp_path / "key.pem")


@pytest.mark.parametrize("read", [read_private_key, read_public_key])
def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, read) -> None:
    with pytest.raises(UsageError, match=r"none\.pem cannot be read: No such file"):
        read(tmp_path / "none.pem")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_private_key, read_public_key])
def test_without_the_package_the_extra_is_named(
    tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_bytes(private_pem(KEY))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ExtraMissing, match=r'needs the package cryptography.*"medtl\[sign\]"'):
        read(tmp_path / "key.pem")


def test_fingerprints_are_short_and_differ() -> None:
    names = {fingerprint(key.public_key()) for key in (KEY, OTHER)}
    assert len(names) == 2
    assert {len(name) for name in names} == {24}
