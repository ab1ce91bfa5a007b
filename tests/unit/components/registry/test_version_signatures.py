"""Signatures of versions by keys in files: made once, accepted with the right key, refused whatever was changed."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from celebdit_testing.signing_keys import write_keys
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from model_signing import hashing, signing, verifying

from components.errors import BadInput, DataRefused
from components.registry.version_files import ModelFiles
from components.registry.version_manifest import MANIFEST_FILE, VersionManifest
from components.registry.version_records import VersionRecords
from components.registry.version_signatures import VersionSignatures
from components.storage import StoreUri, connect


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    """The files of a version that was verified; none of them is looked into here."""
    folder = tmp_path / "version"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "weights.safetensors").write_bytes(b"weights")
    (folder / "MLmodel").write_bytes(b"code")
    manifest = VersionManifest.of_folder(folder, checkpoint_digest="c", ema="0.1")
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return ModelFiles(folder, folder / "artifacts" / "weights.safetensors", cast(Any, None), manifest.digest)


@pytest.fixture
def records(moto_endpoint: str, prefix: StoreUri) -> VersionRecords:
    return VersionRecords(connect(moto_endpoint, deadline_s=5.0), prefix)


@pytest.fixture
def signatures(records: VersionRecords) -> VersionSignatures:
    return VersionSignatures(records)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_signed_version_is_accepted_with_the_public_key_and_signed_once(
    signatures: VersionSignatures, files: ModelFiles, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    keys = write_keys(tmp_path / "key", ec.generate_private_key(curve))
    public = signatures.public_key(keys.public)
    with pytest.raises(
        DataRefused, match=r"version 3 is not signed, and the public key .*key.pub is set in CELEBDIT_VERIFY_KEY"
    ) as refused:
        signatures.check(files, public, "version 3")
    assert "celebdit models sign" in str(refused.value.hint)
    signed = signatures.sign(files, signatures.private_key(keys.private), "version 3")
    assert (signed.key_id, signed.is_new) == (public.id, True)
    signatures.check(files, public, "version 3")
    assert not signatures.sign(files, signatures.private_key(keys.private), "version 3").is_new


def test_the_signature_of_another_key_is_none(
    signatures: VersionSignatures, files: ModelFiles, records: VersionRecords, tmp_path: Path
) -> None:
    ours, theirs = write_keys(tmp_path / "ours"), write_keys(tmp_path / "theirs")
    their_id = signatures.sign(files, signatures.private_key(theirs.private), "version 3").key_id
    public = signatures.public_key(ours.public)
    with pytest.raises(DataRefused, match=f"is signed by other keys only \\({their_id}; this is {public.id}\\)"):
        signatures.check(files, public, "version 3")
    stolen = records.signature(str(files.manifest_sha256), their_id)
    assert stolen is not None
    records.put_signature(str(files.manifest_sha256), public.id, stolen)  # under the name of our key
    with pytest.raises(DataRefused, match="does not fit"):
        signatures.check(files, public, "version 3")
    assert signatures.sign(files, signatures.private_key(ours.private), "version 3").is_new, "a signature that does not fit is replaced"
    signatures.check(files, public, "version 3")
    signatures.check(files, signatures.public_key(theirs.public), "version 3")


@pytest.mark.parametrize("change", ["changed", "added", "removed", "manifest"])
def test_a_changed_version_does_not_fit_its_signature(
    signatures: VersionSignatures, files: ModelFiles, tmp_path: Path, change: str
) -> None:
    keys = write_keys(tmp_path / "key")
    signatures.sign(files, signatures.private_key(keys.private), "version 3")
    path = files.folder / {"added": "more.py", "manifest": MANIFEST_FILE}.get(change, "MLmodel")
    path.unlink() if change == "removed" else path.write_bytes(b"other")
    with pytest.raises(DataRefused, match="does not fit"):
        signatures.check(files, signatures.public_key(keys.public), "version 3")


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"\xff\xfe", None])
def test_a_changed_signature_is_refused(
    signatures: VersionSignatures, files: ModelFiles, records: VersionRecords, tmp_path: Path, damage: bytes | None
) -> None:
    keys = write_keys(tmp_path / "key")
    key = signatures.sign(files, signatures.private_key(keys.private), "version 3").key_id
    stored = records.signature(str(files.manifest_sha256), key)
    assert stored is not None
    other = stored.replace(b'"payload": "', b'"payload": "AAAA').replace(b'"payload":"', b'"payload":"AAAA')
    assert other != stored
    records.put_signature(str(files.manifest_sha256), key, other if damage is None else damage)
    with pytest.raises(DataRefused, match="does not fit"):
        signatures.check(files, signatures.public_key(keys.public), "version 3")


def test_a_signature_of_another_version_does_not_fit(
    signatures: VersionSignatures, files: ModelFiles, records: VersionRecords, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "key")
    key = signatures.sign(files, signatures.private_key(keys.private), "version 3").key_id
    shutil.copytree(files.folder, tmp_path / "other")
    (tmp_path / "other" / "MLmodel").write_bytes(b"evil")
    other = replace(files, folder=tmp_path / "other", manifest_sha256="f" * 64)
    records.put_signature("f" * 64, key, records.signature(str(files.manifest_sha256), key) or b"")
    with pytest.raises(DataRefused, match="does not fit"):
        signatures.check(other, signatures.public_key(keys.public), "version 4")


@pytest.mark.parametrize("left_out", [["artifacts"], [MANIFEST_FILE], ["artifacts", MANIFEST_FILE]])
def test_a_signature_that_leaves_files_out_does_not_fit(
    signatures: VersionSignatures, files: ModelFiles, records: VersionRecords, tmp_path: Path, left_out: list[str]
) -> None:
    """The package lets a signer leave files out, and accepts such a signature whatever they hold."""
    keys = write_keys(tmp_path / "key")
    hashed = hashing.Config().set_ignored_paths(paths=[files.folder / name for name in left_out])
    config = signing.Config().use_elliptic_key_signer(private_key=keys.private).set_hashing_config(hashed)
    config.sign(files.folder, tmp_path / "partial")
    verifying.Config().use_elliptic_key_verifier(public_key=keys.public).verify(files.folder, tmp_path / "partial")
    public = signatures.public_key(keys.public)
    records.put_signature(str(files.manifest_sha256), public.id, (tmp_path / "partial").read_bytes())
    with pytest.raises(DataRefused, match=f"that does not cover .* \\({len(left_out)} files\\)"):
        signatures.check(files, public, "version 3")
    assert signatures.sign(files, signatures.private_key(keys.private), "version 3").is_new
    signatures.check(files, public, "version 3")


def test_a_key_may_come_from_a_pipe(signatures: VersionSignatures, files: ModelFiles, tmp_path: Path) -> None:
    """As by `--key <(gpg --decrypt key.pem.gpg)`: it can be read once."""
    keys = write_keys(tmp_path / "key")
    with piped(keys.private.read_bytes()) as private:
        assert signatures.sign(files, signatures.private_key(private), "version 3").is_new
    with piped(keys.private.read_bytes()) as private:
        assert not signatures.sign(files, signatures.private_key(private), "version 3").is_new
    with piped(keys.public.read_bytes()) as public:
        signatures.check(files, signatures.public_key(public), "version 3")


@contextmanager
def piped(content: bytes) -> Iterator[Path]:
    """Yield a path that gives `content` once."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)


def test_a_key_file_without_an_end_is_not_read_to_its_end(signatures: VersionSignatures) -> None:
    with pytest.raises(BadInput, match="is not a private key in PEM"):
        signatures.private_key(Path("/dev/zero"))


def test_a_version_without_a_manifest_is_neither_signed_nor_accepted(
    signatures: VersionSignatures, files: ModelFiles, tmp_path: Path
) -> None:
    keys, old = write_keys(tmp_path / "key"), replace(files, manifest_sha256=None)
    with pytest.raises(BadInput, match="before versions had manifests"):
        signatures.sign(old, signatures.private_key(keys.private), "version 1")
    with pytest.raises(DataRefused, match="before versions could be signed"):
        signatures.check(old, signatures.public_key(keys.public), "version 1")


def test_a_key_that_cannot_be_used_is_named_with_what_is_wrong(signatures: VersionSignatures, tmp_path: Path) -> None:
    good = write_keys(tmp_path / "good")
    locked = tmp_path / "locked.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    for number, other in enumerate(
        (rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1()))
    ):
        keys = write_keys(tmp_path / f"other-{number}", other)
        for read, path in ((signatures.private_key, keys.private), (signatures.public_key, keys.public)):
            with pytest.raises(BadInput, match="is not one of the curves secp256r1"):
                read(path)
    (tmp_path / "text").write_text("no key")
    for read, path, words in (
        (signatures.private_key, tmp_path / "absent", "cannot be read: No such file"),
        (signatures.public_key, tmp_path / "absent", "cannot be read: No such file"),
        (signatures.public_key, tmp_path, "cannot be read: Is a directory"),
        (signatures.private_key, tmp_path / "text", "is not a private key in PEM"),
        (signatures.public_key, tmp_path / "text", "is not a public key in PEM"),
        (signatures.private_key, good.public, "is not a private key in PEM"),
        (signatures.public_key, good.private, "is not a public key in PEM"),
        (signatures.private_key, locked, "has a password"),
    ):
        with pytest.raises(BadInput, match=words) as refused:
            read(path)
        assert refused.value.hint


def test_a_key_that_others_alone_may_read_is_named(signatures: VersionSignatures, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "key")
    keys.private.chmod(0)
    if _reads(keys.private):
        pytest.skip("this user reads files of any mode")
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        signatures.private_key(keys.private)


def _reads(path: Path) -> bool:
    assert stat.S_IMODE(path.stat().st_mode) == 0
    try:
        path.read_bytes()
    except PermissionError:
        return False
    return True


@pytest.mark.fault
@pytest.mark.slow
def test_the_packages_own_command_accepts_the_signature(
    signatures: VersionSignatures, files: ModelFiles, records: VersionRecords, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "key")
    key = signatures.sign(files, signatures.private_key(keys.private), "version 3").key_id
    (tmp_path / "model.sig").write_bytes(records.signature(str(files.manifest_sha256), key) or b"")
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--signature", str(tmp_path / "model.sig")]
    checked = subprocess.run([*command, "--public_key", str(keys.public), str(files.folder)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (files.folder / "MLmodel").write_bytes(b"other")
    assert subprocess.run([*command, "--public_key", str(keys.public), str(files.folder)], capture_output=True, check=False).returncode != 0
