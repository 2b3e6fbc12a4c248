"""One target for each parser of foreign bytes: hand it any bytes, and it accepts or refuses, and nothing else.

Accepts: the value, written again, is the very bytes that came (where a format allows several encodings: what is written
means the same). Refuses: a PeerError, or for a file that a person has brought a ConfigError. Any other exception, and
any broken assertion here, is a finding.
"""

import base64
import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_adapters.files.encode import parse_encoding, read_encoded, write_encoded
from commonweal_adapters.files.lora_file import parse_layout, read_floats, read_ints, write_tensors
from commonweal_adapters.files.peft_config import parse_config
from commonweal_protocols.audit.evidence import format_evidence, parse_evidence
from commonweal_protocols.audit.verdict import open_verdict
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import parse_base64, parse_decimal, parse_digest
from commonweal_protocols.base.errors import ConfigError, MalformedError, PeerError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.charters import parse_opening
from commonweal_protocols.records.source import unverified_size
from commonweal_protocols.statements.envelope import format_envelope, parse_envelope, sign_envelope, verify_envelope
from commonweal_protocols.statements.invite import Card, Invite
from commonweal_protocols.statements.statement import open_entry, parse_statement
from commonweal_protocols.statements.upload_permit import parse_blob, sign_permit, verify_permit
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier, parse_cosigner_vkey
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import (
    Verifier,
    encode_vkey,
    make_verifier,
    open_note,
    parse_vkey,
    sign_note,
    split_note,
)
from commonweal_protocols.tlog.policy import parse_policy
from commonweal_protocols.tlog.proof import format_proof, open_proof, parse_proof
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES, encode_bundle, parse_bundle
from commonweal_protocols.witness.witness import format_request, parse_request
from tests.kit.federation import TINY
from tests.kit.witnesses import policy_text

KEY = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
SIGNER = public_hex(KEY)
LOG = make_verifier("log.test/fuzz", KEY.public_key())
VKEY = encode_vkey(LOG.name, LOG.key)
ENTRIES = [b"entry %d" % i for i in range(11)]
TREE = Tree()
for _entry in ENTRIES:
    TREE.append(leaf_hash(_entry))
CHECKPOINT = Checkpoint(LOG.name, 11, TREE.root(11))
NOTE = sign_note(CHECKPOINT.text(), LOG.name, KEY)
BLOB = parse_blob("ab" * 32, 1234)
PERMIT = sign_permit(KEY, "c0" * 32, BLOB)
_folder = tempfile.TemporaryDirectory()
_FILE = Path(_folder.name) / "file.json"


def _text(data: bytes) -> str:
    # Where a caller has bytes it decodes them strictly; lone surrogates reach a parser of text all the same.
    return data.decode("utf-8", "surrogateescape")


def _note(data: bytes) -> None:
    text, lines = split_note(data)
    encoded = [f"— {x.name} {base64.b64encode(x.key_id + x.signature).decode()}\n" for x in lines]
    assert "".join([text, "\n", *encoded]).encode() == data
    opened = open_note(data, [LOG])
    assert opened.signers == (LOG,)
    assert opened.text == text == CHECKPOINT.text(), "nobody without the key has it sign anything else"


def _checkpoint(data: bytes) -> None:
    with suppress(MalformedError):
        unverified_size(data)
    text = _text(data)
    checkpoint = parse_checkpoint(text)
    assert checkpoint.text().encode() == data
    assert parse_checkpoint(open_note(sign_note(text, LOG.name, KEY), [LOG]).text) == checkpoint


def _signed_checkpoint(data: bytes) -> None:
    assert open_checkpoint(data, LOG) == CHECKPOINT


def _vkey(data: bytes) -> None:
    text = _text(data)
    verifier: Verifier | CosignatureVerifier
    try:
        verifier = parse_vkey(text)
    except MalformedError:
        verifier = parse_cosigner_vkey(text)
    assert encode_vkey(verifier.name, verifier.key).encode() == data


def _proof(data: bytes) -> None:
    proof = parse_proof(data)
    again = format_proof(proof.index, proof.path, proof.checkpoint_note)
    # The one line that is skipped: it is unauthenticated, and never written.
    header, first, rest = data.split(b"\n", 2)
    assert again == (header + b"\n" + rest if first.startswith(b"extra ") else data)
    try:
        index, checkpoint = open_proof(data, ENTRIES[5], LOG)
    except PeerError:
        return
    assert (index, checkpoint) == (5, CHECKPOINT)


def _bundle(data: bytes) -> None:
    count, bundle = data[:1], data[1:]
    entries = parse_bundle(bundle, int.from_bytes(count, "big") + 1)
    assert encode_bundle(entries) == bundle


def _envelope(data: bytes) -> None:
    envelope = parse_envelope(data)
    assert format_envelope(envelope.payload, envelope.signatures) == data
    try:
        verified = verify_envelope(envelope)
    except SignatureError:
        return
    assert verified.payload == envelope.payload


def _statement(data: bytes) -> None:
    statement = parse_statement(data)
    assert statement.payload() == data
    entry = open_entry(sign_envelope(data, KEY))
    assert (entry.statement, entry.signers) == (statement, (SIGNER,))


def _json(data: bytes) -> None:
    # encode is RFC 8785's own library; parse has a faster way.
    assert canonical.encode(canonical.parse(data, max_bytes=MAX_ENTRY_BYTES)) == data


def _scalar(data: bytes) -> None:
    kind, text = data[:1], _text(data[1:])
    match kind:
        case b"d":
            assert str(parse_decimal(text)) == text
        case b"h":
            assert parse_digest(text).hex() == text
        case b"b":
            assert base64.b64encode(parse_base64(text)).decode() == text
        case _:
            raise MalformedError("scalar: wanted d, h or b in front")


def _join(data: bytes) -> None:
    for model in (Card, Invite):
        # Anew: a file that is cut to nothing and written again goes to the disk at once.
        _FILE.unlink(missing_ok=True)
        _FILE.write_bytes(data)
        try:
            value = model.load(_FILE)
        except ConfigError:
            continue
        _FILE.unlink()
        _FILE.write_text(value.model_dump_json())
        assert model.load(_FILE) == value
        return
    raise MalformedError("neither a card nor an invite")


def _adapter(data: bytes) -> None:
    floats = read_floats(data, TINY)
    # Order and white space in the header are another writer's to choose.
    again = read_floats(write_tensors(floats, TINY), TINY)
    # Bytes, since NaN is unlike itself.
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in floats.items()}


def _delta(data: bytes) -> None:
    ints = read_ints(data, TINY)
    again = read_ints(write_tensors(ints, TINY), TINY)
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in ints.items()}


def _encoded(data: bytes) -> None:
    encoding = parse_encoding(data)
    assert write_encoded(read_encoded(data, TINY, encoding), TINY, encoding) == data


def _layout(data: bytes) -> None:
    spans = parse_layout(data, {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}, 1 << 20)
    ends = {s.begin + math.prod(s.shape) * (4 if s.dtype.endswith("32") else 2) for s in spans.values()}
    begins = {s.begin for s in spans.values()}
    # End to end: every end is another's beginning, but for the last, which is the file's.
    assert ends - begins == {len(data)}
    assert len(ends) == len(begins) == len(spans)


def permit_fields(signature: bytes, key: str = SIGNER, consortium: str = "c0" * 32) -> bytes:
    """What an exchange is handed with an upload, in lines."""
    return "\n".join([key, signature.hex(), consortium, BLOB.sha256, str(BLOB.size_bytes)]).encode()


def _opening(data: bytes) -> None:
    opening = parse_opening(data)
    assert opening.to_bytes() == data
    opening.seal()


def _permit(data: bytes) -> None:
    fields = _text(data).split("\n")
    if len(fields) != 5:
        raise MalformedError("permit: wanted five lines")
    key, signature, consortium, sha256, size = fields
    blob = parse_blob(sha256, parse_decimal(size))
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raw = signature.encode("utf-8", "surrogateescape")
    verify_permit(key, raw, consortium, blob)
    if key == SIGNER:
        assert (raw, consortium, blob) == (PERMIT, "c0" * 32, BLOB)


def _policy(data: bytes) -> None:
    policy = parse_policy(_text(data))
    assert parse_policy(policy_text(policy)) == policy


def _evidence(data: bytes) -> None:
    assert format_evidence(parse_evidence(data)) == data


def _request(data: bytes) -> None:
    request = parse_request(data)
    assert format_request(request.old_size, request.path, request.note) == data


def _verdict(data: bytes) -> None:
    assert open_verdict(sign_envelope(data, KEY), SIGNER).auditor == SIGNER


def _peft_config(data: bytes) -> None:
    config, _ = parse_config(data)
    assert parse_config(config.model_dump_json().encode())[0] == config


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "adapter": _adapter,
    "bundle": _bundle,
    "checkpoint": _checkpoint,
    "delta": _delta,
    "encoded": _encoded,
    "envelope": _envelope,
    "evidence": _evidence,
    "join": _join,
    "json": _json,
    "layout": _layout,
    "note": _note,
    "opening": _opening,
    "peft-config": _peft_config,
    "permit": _permit,
    "policy": _policy,
    "proof": _proof,
    "request": _request,
    "scalar": _scalar,
    "signed-checkpoint": _signed_checkpoint,
    "statement": _statement,
    "verdict": _verdict,
    "vkey": _vkey,
}


def accepts(target: str, data: bytes) -> bool:
    """Whether a target accepts some bytes; raises where neither that nor a refusal is what happens."""
    try:
        TARGETS[target](data)
    except PeerError:
        return False
    return True
