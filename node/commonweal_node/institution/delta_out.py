"""What a node shows of a delta: clipped and noised where the compact says so, and encoded as the compact says.

The order is fixed: first privacy, since whatever follows is then only a function of what may be shown; then the
encoding, whose residual stays here and goes into the next round's delta.

::

    outgoing/<round entry's leaf>.safetensors    what was made ready to be shown, before it is shown
    residual/round-<n>.safetensors               what the encoding of round n's update left out

Noise is drawn once: a second draw on the same delta would halve what it hides. So the bytes are on disk before the
first of them leaves, and after a crash the same are sent. Another round's residual is a file of its own: a round whose
update never entered the log leaves no trace in later ones.
"""

import secrets
from pathlib import Path

from commonweal_adapters.exact.privacy import privatise
from commonweal_adapters.files.delta import GridTensors, write_delta
from commonweal_adapters.files.feedback import encode_with_feedback, load_residual, no_residual, save_residual
from commonweal_node.home import NodeHome
from commonweal_protocols.base.files import read_if_there, write_atomic
from commonweal_protocols.fold.state import RoundState, State
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.delta_encoding import EXACT
from commonweal_protocols.statements.values import MAX_BLOB_BYTES, Name


def spell_delta(home: Path, state: State, r: RoundState, name: Name, delta: GridTensors) -> bytes:
    """Return the bytes of a delta as they may leave this node, in the open round ``r``.

    Asked again for the same round, it returns the same bytes, whatever ``delta`` is then, unless those are nothing but
    the delta: what is neither noised nor rounded needs no keeping, and a release may have followed the one it was of.

    Raises:
        BlobError: Not the spec's tensors.
        ConfigError: The kept residual is damaged, or of another spec.
        StorageError: What is to be sent, or the new residual, cannot be kept.
    """
    if r.privacy is None and (r.encoding or EXACT) == EXACT:
        return _spell(home, state, r, name, delta)
    ready = NodeHome(home).outgoing / f"{r.leaf}.safetensors"
    if (kept := read_if_there(ready, MAX_BLOB_BYTES, "the delta to be sent")) is not None:
        return kept
    data = _spell(home, state, r, name, delta)
    write_atomic(ready, data, mode=0o600)
    for old in ready.parent.iterdir():
        if old != ready:
            old.unlink()
    return data


def _spell(home: Path, state: State, r: RoundState, name: Name, delta: GridTensors) -> bytes:
    spec = state.compact.adapter
    if r.privacy is not None:
        delta = privatise(delta, r.privacy, secrets.token_bytes)
    if r.encoding is None:
        return write_delta(delta, spec)
    data, left = encode_with_feedback(delta, _residual(home, state, r, name, spec), spec, r.encoding)
    save_residual(_path(home, r.round.round), left, spec)
    return data


def _residual(home: Path, state: State, r: RoundState, name: Name, spec: AdapterSpec) -> GridTensors:
    """What the newest update of ours that is in the log has left out."""
    for earlier in reversed(state.rounds[: r.round.round - 1]):
        if name in earlier.updates:
            return load_residual(_path(home, earlier.round.round), spec)
    return no_residual(spec)


def _path(home: Path, number: int) -> Path:
    return NodeHome(home).residual / f"round-{number}.safetensors"
