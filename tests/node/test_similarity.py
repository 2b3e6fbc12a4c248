"""Near duplicates: the estimate against the exact Jaccard similarity, and the chance to be compared at all."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_node.rows.similarity import PLACES, bands, rows_per_band, signature, similarity, words


def jaccard(a: str, b: str, n: int) -> float:
    """The definition, on sets of word n-grams."""

    def grams(text: str) -> set[tuple[str, ...]]:
        found = words(text)
        return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))}

    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def text_of(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(10_000)}" for _ in range(count)]


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("changed", [0, 2, 10, 40, 100])
def test_the_estimate_is_the_jaccard_similarity_within_its_error(n: int, changed: int) -> None:
    errors, truths = [], []
    for seed in range(30):
        rng = random.Random(f"{n} {changed} {seed}")
        a = text_of(rng, 120)
        b = list(a)
        for i in rng.sample(range(120), changed):
            b[i] = f"x{i}"
        truth = jaccard(" ".join(a), " ".join(b), n)
        errors.append(similarity(signature(" ".join(a), n), signature(" ".join(b), n)) - truth)
        truths.append(truth)
    # Each estimate is a mean of 128 coin tosses; five standard deviations, and for the mean of 30 estimates four.
    deviation = np.sqrt(np.mean([t * (1 - t) for t in truths]) / PLACES)
    assert np.abs(errors).max() <= 5 * deviation + 1e-12
    assert abs(np.mean(errors)) <= 4 * deviation / np.sqrt(30) + 1e-12


@given(st.lists(st.sampled_from(["tea", "Rice", "FISH", "größe", "চাহ"]), min_size=1, max_size=30), st.randoms())
def test_case_space_and_punctuation_do_not_count(found: list[str], rng: random.Random) -> None:
    plain = " ".join(found)
    dressed = "".join(w.swapcase().replace("SS", "ß") + rng.choice([" ", ", ", "!\n", " – ", "…"]) for w in found)
    assert signature(dressed, 5) == signature(plain, 5)


def test_order_within_an_n_gram_counts() -> None:
    assert similarity(signature("a b", 2), signature("b a", 2)) < 0.1
    assert signature("a b", 1) == signature("b a", 1)


def test_where_a_script_writes_no_spaces_each_character_is_a_word() -> None:
    assert words("茶を飲む tea") == ["茶", "を", "飲", "む", "tea"]
    assert words("ชา") == ["ช", "า"]


def test_a_text_without_words_has_a_signature_and_a_long_one_needs_no_more() -> None:
    assert len(signature("?!", 5)) == len(signature("a b " * 50_000, 5)) == 4 * PLACES


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
def test_texts_at_the_threshold_are_compared_with_a_chance_of_at_least_95_in_100(threshold: float) -> None:
    rows = rows_per_band(threshold)
    rng = np.random.default_rng(round(threshold * 1000))
    # Two signatures that agree at each place with that chance: what MinHash makes of texts of that similarity.
    trials, met = 600, 0
    for _ in range(trials):
        a = rng.integers(0, 2**32, PLACES, dtype=np.uint32)
        b = np.where(rng.random(PLACES) < threshold, a, a + np.uint32(1)).astype(np.uint32)
        met += bool(set(bands(a.tobytes(), rows)) & set(bands(b.tobytes(), rows)))
    assert met / trials >= 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5


def test_the_same_minima_in_another_band_are_no_match() -> None:
    same = np.zeros(PLACES, np.uint32).tobytes()
    assert len(set(bands(same, 8))) == 16


def test_signatures_are_fixed_for_ever() -> None:
    # One place worked out by hand of the definition, in plain integers.
    import hashlib

    def mix(h: int) -> int:
        mask = 2**64 - 1
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & mask
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & mask
        return h ^ (h >> 31)

    stream = hashlib.shake_256(b"commonweal minhash").digest(16 * PLACES)
    numbers = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, len(stream), 8)]
    word = int.from_bytes(hashlib.blake2b(b"tea", digest_size=8).digest(), "little")
    wanted = [
        (((a | 1) * mix(word) + b) % 2**64) >> 32 for a, b in zip(numbers[:PLACES], numbers[PLACES:], strict=True)
    ]
    assert np.frombuffer(signature("Tea!", 5), "<u4").tolist() == wanted
