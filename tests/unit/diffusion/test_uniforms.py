"""The generator: what it is, to the bit, and that a draw depends on nothing but its key."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.diffusion.rng import Stream, uniforms_for

ROOT = Path(__file__).parents[3]
WORD = 2**64 - 1
STREAMS: tuple[Stream, ...] = ("time", "mask", "compdemo")

_records = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_keys = st.tuples(
    st.integers(-(2**70), 2**70), _records, st.integers(0, 2**40), st.sampled_from(STREAMS)
)

# The seven numbers of each key below came once from `_uniforms`, the definition in plain Python.
RECORDED: list[tuple[tuple[int, str, int, Stream], list[float]]] = [
    (
        (0, "r", 0, "time"),
        [
            0.7921107134806343,
            0.8999400743225259,
            0.5205476741526395,
            0.9486064013865225,
            0.5050310498689277,
            0.9939921792277125,
            0.49780414560164177,
        ],
    ),
    (
        (0, "r", 0, "mask"),
        [
            0.6704293673556937,
            0.39760973589608417,
            0.9597356386049489,
            0.15757617387378642,
            0.3789709596749825,
            0.6533517165930515,
            0.577850434787431,
        ],
    ),
    (
        (2026, "train.jsonl:17 é", 3, "compdemo"),
        [
            0.9048095081782082,
            0.6469939535631558,
            0.2297258395099092,
            0.268826334142262,
            0.0770378751693489,
            0.9561112856081182,
            0.3460762415428871,
        ],
    ),
]

_BLAKE2B_START = (
    0x6A09E667F3BCC908,
    0xBB67AE8584CAA73B,
    0x3C6EF372FE94F82B,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
    0x9B05688C2B3E6C1F,
    0x1F83D9ABFB41BD6B,
    0x5BE0CD19137E2179,
)
_BLAKE2B_ORDER = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_BLAKE2B_LANES = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)


def _rotated(word: int, bits: int) -> int:
    return (word >> bits | word << (64 - bits)) & WORD


def _blake2b(text: bytes, digest_size: int) -> bytes:
    """RFC 7693, without a key."""
    state = list(_BLAKE2B_START)
    state[0] ^= 0x01010000 ^ digest_size
    num_blocks = max(1, -(-len(text) // 128))
    for block in range(num_blocks):
        is_last = block == num_blocks - 1
        chunk = text[128 * block : 128 * (block + 1)].ljust(128, b"\0")
        message = [int.from_bytes(chunk[i : i + 8], "little") for i in range(0, 128, 8)]
        v = state + list(_BLAKE2B_START)
        v[12] ^= len(text) if is_last else 128 * (block + 1)
        v[14] ^= WORD if is_last else 0
        for turn in range(12):
            order = iter(_BLAKE2B_ORDER[turn % 10])
            for a, b, c, d in _BLAKE2B_LANES:
                for first, second in ((32, 24), (16, 63)):
                    v[a] = (v[a] + v[b] + message[next(order)]) & WORD
                    v[d] = _rotated(v[d] ^ v[a], first)
                    v[c] = (v[c] + v[d]) & WORD
                    v[b] = _rotated(v[b] ^ v[c], second)
        state = [state[i] ^ v[i] ^ v[i + 8] for i in range(8)]
    return b"".join(word.to_bytes(8, "little") for word in state)[:digest_size]


def _philox4x64_10(counter: int, key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Salmon et al. 2011, ten rounds."""
    a, b, c, d = (counter >> shift & WORD for shift in (0, 64, 128, 192))
    k, m = key
    for _ in range(10):
        high, low = divmod(0xD2E7470EE14C6C93 * a, 2**64)
        high_2, low_2 = divmod(0xCA5A826395121157 * c, 2**64)
        a, b, c, d = high_2 ^ b ^ k, low_2, high ^ d ^ m, low
        k, m = (k + 0x9E3779B97F4A7C15) & WORD, (m + 0xBB67AE8584CAA73B) & WORD
    return a, b, c, d


def _uniforms(seed: int, record_id: str, view: int, stream: str, count: int) -> list[float]:
    """The definition: the counter starts at 1, four words a step, the upper 53 bits of each."""
    digest = _blake2b(f"{seed}\x1f{record_id}\x1f{view}\x1f{stream}".encode(), 16)
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
    words = [word for step in range(-(-count // 4)) for word in _philox4x64_10(step + 1, key)]
    return [(word >> 11) / 2**53 for word in words[:count]]


@pytest.mark.parametrize("length", [0, 3, 127, 128, 129, 300])
def test_the_oracle_of_the_key_is_blake2b(length: int):
    text = bytes(i % 251 for i in range(length))
    assert _blake2b(text, 16) == hashlib.blake2b(text, digest_size=16).digest()


@pytest.mark.parametrize(("key", "recorded"), RECORDED)
def test_the_generator_is_settled_to_the_bit(
    key: tuple[int, str, int, Stream], recorded: list[float]
):
    assert _uniforms(*key, len(recorded)) == recorded
    assert uniforms_for(*key, len(recorded)).tolist() == recorded


@settings(max_examples=50, deadline=None)
@given(_keys, st.integers(0, 9))
def test_the_generator_is_philox_keyed_by_blake2b(key: tuple[int, str, int, Stream], count: int):
    assert uniforms_for(*key, count).tolist() == _uniforms(*key, count)


@settings(deadline=None)
@given(_keys, st.integers(0, 40), st.integers(0, 40))
def test_a_longer_draw_begins_with_the_shorter(
    key: tuple[int, str, int, Stream], count: int, more: int
):
    np.testing.assert_array_equal(
        uniforms_for(*key, count + more)[:count], uniforms_for(*key, count)
    )


@settings(deadline=None)
@given(_keys, _keys)
def test_two_keys_share_their_numbers_only_if_they_are_equal(
    ours: tuple[int, str, int, Stream], theirs: tuple[int, str, int, Stream]
):
    is_same = uniforms_for(*ours, 2).tolist() == uniforms_for(*theirs, 2).tolist()
    assert is_same == (ours == theirs)


def test_a_record_id_that_looks_like_another_key_has_numbers_of_its_own():
    plain = uniforms_for(0, "a", 1, "mask", 4)
    for record_id in ("a\x1f1", "a\x1f1\x1fmask", "0\x1fa"):
        assert not np.array_equal(uniforms_for(0, record_id, 1, "mask", 4), plain)


def test_a_fresh_process_draws_the_same_numbers():
    keys = [
        [seed, "réc\x1f", view, stream] for seed in (0, 7) for view in (0, 3) for stream in STREAMS
    ]
    code = (
        "import json, sys\n"
        "from pipeline.diffusion.rng import uniforms_for\n"
        "keys = json.loads(sys.argv[1])\n"
        "print(json.dumps([uniforms_for(*key, 5).tolist() for key in keys]))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, json.dumps(keys)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [uniforms_for(*key, 5).tolist() for key in keys]


@pytest.mark.parametrize("stream", STREAMS)
def test_the_numbers_are_uniform_and_every_stream_is_independent_of_the_others(stream: Stream):
    num_draws, z_bound = 100_000, 4.0
    drawn = uniforms_for(3, "r", 1, stream, num_draws)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    per_bin = np.histogram(drawn, bins=10, range=(0, 1))[0]
    deviation = np.sqrt(num_draws * 0.1 * 0.9)  # binomial
    assert np.abs(per_bin - num_draws / 10).max() < z_bound * deviation
    for other in STREAMS:
        if other != stream:
            correlation = np.corrcoef(drawn, uniforms_for(3, "r", 1, other, num_draws))[0, 1]
            assert abs(correlation) < z_bound / np.sqrt(num_draws)
