"""Counter-based randomness: the same key gives the same numbers, whatever else runs.

Every draw of noise is keyed by (seed, record id, view) and by what it is for, so batch size, worker
count, order, retries and further views never change a mask.
"""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stream = Literal["time", "mask", "compdemo", "reserve", "fidelity", "token", "remask"]


def uniforms_for(
    seed: int, record_id: str, view: int, stream: Stream, count: int
) -> NDArray[np.float64]:
    """`count` uniforms in [0, 1) of one stream; a longer draw begins with the shorter one.

    Philox4x64-10 keyed by BLAKE2b of the key's text; the raw 64-bit words are turned into doubles
    here, because NumPy promises the words to be stable over versions and its `random()` not.
    """
    text = f"{seed}\x1f{record_id}\x1f{view}\x1f{stream}".encode()
    key = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype="<u8")
    words = np.random.Philox(key=key.astype(np.uint64)).random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
