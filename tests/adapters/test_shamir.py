"""Secret sharing: any threshold of shares gives the secret, and one fewer fits every secret."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_adapters.secure.shamir import PRIME, join, split

SECRETS = st.binary(min_size=32, max_size=32)


def test_the_modulus_is_prime() -> None:
    # Miller-Rabin, forty rounds: wrong with a probability below 4^-40.
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    rng = random.Random(1)
    for _ in range(40):
        x = pow(rng.randrange(2, PRIME - 1), odd, PRIME)
        seen = [x := pow(x, 2, PRIME) if i else x for i in range(twos)]
        assert seen[0] == 1 or PRIME - 1 in seen


@given(SECRETS, st.integers(1, 6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, more: int, rng: random.Random) -> None:
    shares = split(secret, threshold, threshold + more, rng.randbytes)
    assert {len(s) for s in shares} == {33}
    for some in itertools.combinations(enumerate(shares, 1), threshold):
        assert join(dict(some)) == secret


@given(SECRETS, SECRETS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_one_share_fewer_fits_every_other_secret(one: bytes, other: bytes, threshold: int, rng: random.Random) -> None:
    shares = split(one, threshold, threshold, rng.randbytes)
    # The one value at x = threshold with which the same shares would give the other secret, by the same interpolation.
    known = dict(enumerate(shares[:-1], 1))
    points = {0: int.from_bytes(other), **{x: int.from_bytes(s) for x, s in known.items()}}
    value = 0
    for x, y in points.items():
        up = down = 1
        for z in points.keys() - {x}:
            up, down = up * (threshold - z) % PRIME, down * (x - z) % PRIME
        value += y * up * pow(down, -1, PRIME)
    assert join({**known, threshold: (value % PRIME).to_bytes(33)}) == other


def test_shares_that_give_no_32_bytes_give_nothing() -> None:
    assert join({1: ((1 << 256) + 5).to_bytes(33)}) is None
    assert join({1: ((1 << 256) - 1).to_bytes(33)}) == b"\xff" * 32


@pytest.mark.parametrize(("size", "threshold", "holders"), [(31, 1, 1), (33, 1, 1), (32, 0, 3), (32, 4, 3)])
def test_what_cannot_be_shared_is_refused(size: int, threshold: int, holders: int) -> None:
    with pytest.raises(ValueError, match="wanted 32 bytes and 1 ≤ threshold ≤ holders"):
        split(bytes(size), threshold, holders, bytes)
