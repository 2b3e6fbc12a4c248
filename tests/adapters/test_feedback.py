"""Error feedback: over the rounds nothing is lost, and a node finds again what it left out."""

import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.encode import read_encoded
from commonweal_adapters.files.feedback import encode_with_feedback, load_residual, no_residual, save_residual
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.statements.delta_encoding import Encoding
from tests.kit.encodings import delta, encodings, equal
from tests.kit.federation import TINY

COARSE = Encoding(bits=4, keep_millis=100)


@encodings
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_what_was_sent_and_what_is_left_add_up_to_what_was_trained(encoding: Encoding, seed: int) -> None:
    residual = no_residual(TINY)
    trained = {name: np.zeros(q.shape, np.int64) for name, q in residual.items()}
    sent = {name: q.copy() for name, q in trained.items()}
    for i in range(4):
        update = delta(seed + i, TINY)
        data, residual = encode_with_feedback(update, residual, TINY, encoding)
        for name, q in read_encoded(data, TINY, encoding).items():
            sent[name] += q
            trained[name] += update[name]
    for name, total in trained.items():
        assert np.array_equal(sent[name] + residual[name], total)


def test_a_steady_update_arrives_on_average_however_coarse_the_encoding_is() -> None:
    update, residual, rounds = delta(1, TINY, size=100), no_residual(TINY), 200
    total = {name: np.zeros(q.shape, np.int64) for name, q in update.items()}
    for _ in range(rounds):
        data, residual = encode_with_feedback(update, residual, TINY, COARSE)
        for name, q in read_encoded(data, TINY, COARSE).items():
            total[name] += q
    for name, q in update.items():
        # What is left is bounded: an element waits until it is among the largest tenth, some 10 to 20 rounds.
        assert np.abs(total[name] - rounds * q.astype(np.int64)).max() <= 100 * 20


def test_what_does_not_fit_saturates() -> None:
    full = GridTensors({name: np.full(q.shape, LIMIT, np.int32) for name, q in no_residual(TINY).items()})
    data, left = encode_with_feedback(full, full, TINY, Encoding(bits=32))
    assert equal(read_encoded(data, TINY, Encoding(bits=32)), full)
    assert equal(left, no_residual(TINY))


def test_the_residual_is_found_again_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "residual/round-3.safetensors"
    assert equal(load_residual(path, TINY), no_residual(TINY))
    _, residual = encode_with_feedback(delta(2, TINY), no_residual(TINY), TINY, COARSE)
    save_residual(path, residual, TINY)
    assert equal(load_residual(path, TINY), residual)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_residual_of_another_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "residual"
    save_residual(path, no_residual(TINY), TINY)
    with pytest.raises(
        ConfigError, match=r"not a residual of this consortium's adapter: .*; move it away to start anew"
    ):
        load_residual(path, TINY.model_copy(update={"rank": 1}))
