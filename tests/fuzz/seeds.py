"""The corpus: for each target, samples that it accepts, from the project's own encoders.

``python -m tests.fuzz.seeds`` writes them into ``corpus/``, to be done where a format has changed. A file there whose
name begins with ``found-`` is an input that once was a finding, and is kept as it is.
"""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.files.encode import quantise, write_encoded
from commonweal_adapters.files.lora_file import tensor_shapes, write_tensors
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.audit.evidence import EntryEvidence, ForkEvidence, LoggedEntry, format_evidence
from commonweal_protocols.audit.verdict import sign_verdict
from commonweal_protocols.fold.charters import Opening
from commonweal_protocols.statements.compact import Witness
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.envelope import format_envelope, parse_envelope, sign, sign_envelope
from commonweal_protocols.statements.invite import Card, Invite
from commonweal_protocols.statements.statement import Statement, parse_statement
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.cosignature import make_cosignature_verifier
from commonweal_protocols.tlog.merkle import EMPTY_ROOT
from commonweal_protocols.tlog.note import sign_note
from commonweal_protocols.tlog.proof import format_proof
from commonweal_protocols.tlog.tiles import encode_bundle
from commonweal_protocols.witness.witness import format_request
from tests.fuzz.targets import CHECKPOINT, ENTRIES, KEY, LOG, NOTE, PERMIT, SIGNER, TREE, VKEY, permit_fields
from tests.kit.federation import TINY, data_manifest, key_of, two_rounds
from tests.kit.ring import contributed, ring
from tests.kit.secure_messages import HEADER, MESSAGES
from tests.kit.shelf import shelf
from tests.kit.year import a_year

CORPUS = Path(__file__).parent / "corpus"
FOUND = "found-"


def make_seeds() -> Mapping[str, Mapping[str, bytes]]:
    """Return every target's samples, by name."""
    federation = two_rounds()
    payloads: dict[str, bytes] = {}
    for data in (*federation.entries, *a_year().federation.entries):
        payload = parse_envelope(data).payload
        payloads.setdefault(parse_statement(payload).predicate.kind(), payload)
    header = parse_statement(payloads["identity"]).header
    payloads["datamanifest"] = Statement(header, data_manifest("clinic")).payload()
    outer = contributed(ring())
    named = outer.state.rounds[0].updates["delta"].update
    assert named.release is not None
    payloads["foreignadoption"] = Statement(header, outer.foreign_adoption(named.release)).payload()
    payloads["update-of-a-consortium"] = Statement(header, named).payload()
    payloads["compact-with-a-consortium"] = Statement(None, outer.compact).payload()
    payloads |= {said.kind(): Statement(HEADER, said).payload() for said in MESSAGES}
    floats = {k: np.arange(a * b, dtype=np.float32).reshape(a, b) for k, (a, b) in tensor_shapes(TINY).items()}
    ints = {k: v.astype(np.int32) for k, v in floats.items()}
    encodings = {
        "8": Encoding(bits=8),
        "4": Encoding(bits=4),
        "4-sparse": Encoding(bits=4, keep_millis=100),
        "32-sparse": Encoding(bits=32, keep_millis=300),
    }
    path = TREE.inclusion_path(5, 11)
    proof = format_proof(5, path, NOTE)
    fork = sign_note(Checkpoint(LOG.name, 11, b"\7" * 32).text(), LOG.name, KEY)
    small = sign_note(Checkpoint(LOG.name, 6, TREE.root(6)).text(), LOG.name, KEY)
    ed = make_cosignature_verifier("witness.test/ed", key_of("witness").public_key())
    ml = make_cosignature_verifier("witness.test/ml", MLDSA44PrivateKey.from_seed_bytes(b"m" * 32).public_key())
    unknown = "— witness.test/one ".encode() + base64.b64encode(b"\0\1\2\3" + b"x" * 72) + b"\n"
    card = Card(institution="clinic", key=SIGNER)
    invite = Invite(
        consortium="c0" * 32,
        name="three",
        exchange="hub.test:8401",
        records="https://hub.test:8402",
        ca_pem="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    policy = f"# all\nlog {VKEY} https://log.test\nwitness one {ed.vkey}\twitness.test\nwitness two {ml.vkey}\n"
    verdict = sign_verdict(examine(shelf(federation)).report, KEY, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return {
        "adapter": {"floats": write_tensors(floats, TINY)},
        "bundle": {"one": b"\x00" + encode_bundle([b"x"]), "three": b"\x02" + encode_bundle([b"", b"ab", b"c" * 300])},
        "checkpoint": {
            "empty": Checkpoint(LOG.name, 0, EMPTY_ROOT).text().encode(),
            "large": Checkpoint("log.test/é", (1 << 63) - 1, b"\7" * 32).text().encode(),
        },
        "delta": {"ints": write_tensors(ints, TINY)},
        "encoded": {
            name: write_encoded(quantise(GridTensors(ints), encoding), TINY, encoding)
            for name, encoding in encodings.items()
        },
        "envelope": {
            "one": sign_envelope(payloads["identity"], KEY),
            "three": federation.entries[0],
            "two-of-anything": format_envelope(b"anything", [sign(b"anything", KEY), sign(b"x", key_of("other"))]),
        },
        "evidence": {
            "fork": format_evidence(ForkEvidence(NOTE, fork)),
            "prefix": format_evidence(ForkEvidence(small, fork, TREE.root(6), tuple(TREE.consistency_path(6, 11)))),
            "entry": format_evidence(EntryEvidence((LoggedEntry(ENTRIES[5], proof),))),
            "two-entries": format_evidence(EntryEvidence((LoggedEntry(ENTRIES[5], proof), LoggedEntry(b"", proof)))),
        },
        "join": {
            "card": card.model_dump_json(indent=2).encode(),
            "card-with-witness": card.model_copy(
                update={"witness": Witness(name="clinic", vkey=ed.vkey, url="https://witness.test")}
            )
            .model_dump_json()
            .encode(),
            "card-of-a-consortium": card.model_copy(update={"consortium": "c0" * 32}).model_dump_json().encode(),
            "invite": invite.model_dump_json(indent=2).encode(),
        },
        "json": {
            "values": b'{"":null,"a":[true,false,-1,0,9007199254740991],"b":{"c":"\\n\\u0001\\"\\\\","d":{}}}',
            "order": '{"\u20ac":"\u00e9","\U0001f600":[],"\ufb33":""}'.encode(),
        },
        "layout": {
            "floats": write_tensors(floats, TINY),
            "halves": safetensors.numpy.save({"a": np.ones((2, 3), np.float16), "b": np.ones(5, np.float32)}),
        },
        "note": {"one": NOTE, "and-unknown": NOTE + unknown},
        "peft-config": {
            "lora": b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}',
            "scaled": b'{"peft_type": "LORA", "r": 1, "lora_alpha": 0.5, "use_rslora": true, "target_modules": "all"}',
        },
        "permit": {"signed": permit_fields(PERMIT)},
        "policy": {
            "group": f"{policy}group any-of-all any one two\nquorum any-of-all\n".encode(),
            "none": f"log {VKEY}\nquorum none\n".encode(),
        },
        "opening": {"part": Opening("bars", {"mean": [1, "é"]}, "5a" * 32).to_bytes()},
        "proof": {"plain": proof, "extra": proof.replace(b"@v1\n", b"@v1\nextra ZXh0cmE=\n")},
        "request": {
            "first": format_request(0, [], NOTE),
            "later": format_request(6, TREE.consistency_path(6, 11), NOTE + unknown),
        },
        "scalar": {
            "decimal": b"d9223372036854775807",
            "digest": b"h" + CHECKPOINT.root.hex().encode(),
            "base64": b"b" + base64.b64encode(CHECKPOINT.root),
            "base64-two": b"bAA==",
        },
        "signed-checkpoint": {"plain": NOTE, "and-unknown": NOTE + unknown},
        "statement": payloads,
        "verdict": {"passed": parse_envelope(verdict).payload},
        "vkey": {"log": VKEY.encode(), "ed25519": ed.vkey.encode(), "ml-dsa-44": ml.vkey.encode()},
    }


if __name__ == "__main__":
    for target, samples in make_seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith(FOUND):
                old.unlink()
        for name, data in samples.items():
            (folder / name).write_bytes(data)
