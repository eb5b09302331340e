"""The Zarr half of a shard: one row an answered teacher token, in order of view, chunk and token.

Axes: M answered teacher token, K kept logit in rank order, J cached temperature.
Arrays under tokens.zarr (Zarr v3, inner chunks of 1024 rows, one shard object an array):

    ids        uint32  [M, K]
    logits     float32 [M, K]   logits_dtype float32: exact
    logit_max  float32 [M]      logits_dtype float16: the first logit of the row
    logit_step uint16  [M, K]   logits_dtype float16: bits(h_k) - bits(h_(k-1)) modulo 2^16, with
                                h_k = float16(z_k - logit_max), bits(h_(-1)) = 0
    logsumexp  float32 [M, J]
    gold_logp  float32 [M]

The steps lose nothing of the float16 values and take two thirds of their room. Inner chunks go
through Blosc(zstd 1, shuffle), then CRC-32C. A missing object would read as zeros: so decoding
starts from the bytes of every object, and refuses if one is not there.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype

from storage_schemas.errors import CacheCorruptError
from storage_schemas.identity import KeptIdentity
from storage_schemas.targets import Floats, KeptTargets

Array = NDArray[Any]

TOKENS_FOLDER = "tokens.zarr"
ROWS_PER_CHUNK = 1024


def array_shapes(kept: KeptIdentity, num_rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of each array; none where no tokens are kept."""
    if kept.top_k == 0:
        return {}
    top, row = (num_rows, kept.top_k), (num_rows,)
    logits: dict[str, tuple[str, tuple[int, ...]]] = (
        {"logits": ("float32", top)}
        if kept.logits_dtype == "float32"
        else {"logit_max": ("float32", row), "logit_step": ("uint16", top)}
    )
    return {
        "ids": ("uint32", top),
        **logits,
        "logsumexp": ("float32", (num_rows, len(kept.temperatures))),
        "gold_logp": ("float32", row),
    }


def array_files(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Paths under tokens.zarr of one array; without elements it has no shard object."""
    if 0 in shape:
        return (f"{name}/zarr.json",)
    return (f"{name}/zarr.json", "/".join([name, "c", *("0" for _ in shape)]))


def token_files(kept: KeptIdentity, num_rows: int) -> frozenset[str]:
    """Every path under tokens.zarr that a shard with that many rows has."""
    shapes = array_shapes(kept, num_rows)
    if not shapes:
        return frozenset()
    files = (path for name, (_, shape) in shapes.items() for path in array_files(name, shape))
    return frozenset(("zarr.json", *files))


def encode_top_k(top_k: KeptTargets, kept: KeptIdentity) -> dict[str, bytes]:
    """The files under tokens.zarr, by path."""
    arrays: dict[str, Array] = {
        "ids": top_k.ids_MK.astype(np.uint32),
        "logsumexp": top_k.logsumexp_MJ,
        "gold_logp": top_k.gold_logp_M,
    }
    if kept.logits_dtype == "float32":
        arrays["logits"] = top_k.logits_MK
    else:
        arrays["logit_max"], arrays["logit_step"] = to_steps(top_k.logits_MK)
    objects: dict[str, Buffer] = {}
    store = zarr.storage.MemoryStore(objects)
    group = zarr.create_group(store)
    for name, (dtype, shape) in array_shapes(kept, len(top_k.gold_logp_M)).items():
        assert arrays[name].shape == shape, f"{name}: expected {shape}, got {arrays[name].shape}"
        assert arrays[name].dtype == dtype, f"{name}: expected {dtype}, got {arrays[name].dtype}"
        _write_array(group, name, arrays[name])
    files = {path: data.to_bytes() for path, data in objects.items()}
    assert files.keys() == token_files(kept, len(top_k.gold_logp_M)), "an object is missing"
    return files


def decode_top_k(files: Mapping[str, bytes], kept: KeptIdentity, num_rows: int) -> KeptTargets:
    """The rows of tokens.zarr, from the bytes of its files."""
    return KeptTargets(
        ids_MK=decode_array(files, kept, num_rows, "ids").view(np.int32),
        logits_MK=decode_logits(files, kept, num_rows),
        logsumexp_MJ=decode_array(files, kept, num_rows, "logsumexp"),
        gold_logp_M=decode_array(files, kept, num_rows, "gold_logp"),
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )


def decode_logits(files: Mapping[str, bytes], kept: KeptIdentity, num_rows: int) -> Floats:
    """The kept logits as float32, whatever they are stored as."""
    if kept.logits_dtype == "float32":
        return decode_array(files, kept, num_rows, "logits")
    return from_steps(
        decode_array(files, kept, num_rows, "logit_max"),
        decode_array(files, kept, num_rows, "logit_step"),
    )


def decode_array(files: Mapping[str, bytes], kept: KeptIdentity, num_rows: int, name: str) -> Array:
    """One array of tokens.zarr; CRC-32C is verified, and a missing object is an error."""
    dtype, shape = array_shapes(kept, num_rows)[name]
    for path in array_files(name, shape):
        if path not in files:
            raise CacheCorruptError(f"expected {TOKENS_FOLDER}/{path}, got no such file")
    buffer = default_buffer_prototype().buffer
    objects = {path: buffer.from_bytes(files[path]) for path in array_files(name, shape)}
    try:
        store = zarr.storage.MemoryStore(objects)
        array = zarr.open_array(store, path=name, mode="r")
        if (str(array.dtype), array.shape) != (dtype, shape):
            raise CacheCorruptError(
                f"{TOKENS_FOLDER}/{name}: expected {dtype} {list(shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )
        return np.asarray(array[...])
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        if isinstance(error, CacheCorruptError):
            raise
        raise CacheCorruptError(
            f"{TOKENS_FOLDER}/{name}: expected {dtype} {list(shape)}, got: {error}"
        ) from error


def to_steps(logits_MK: Floats) -> tuple[Floats, NDArray[np.uint16]]:
    """Row maxima and bit-pattern steps of the float16 distances from them (see above)."""
    max_M = logits_MK[:, 0].copy()
    assert np.isfinite(max_M).all(), "the largest kept logit of a row is not finite"
    with np.errstate(over="ignore"):  # a distance past 65,504 becomes infinite: probability 0
        bits_MK = (logits_MK - max_M[:, None]).astype(np.float16).view(np.uint16)
    return max_M, np.diff(bits_MK, axis=1, prepend=np.uint16(0))


def from_steps(max_M: Floats, step_MK: NDArray[np.uint16]) -> Floats:
    """The logits that `to_steps` stored."""
    bits_MK = np.cumsum(step_MK, axis=1, dtype=np.uint16)
    return max_M[:, None] + bits_MK.view(np.float16).astype(np.float32)


def _write_array(group: zarr.Group, name: str, data: Array) -> None:
    num_chunks = max(1, -(-len(data) // ROWS_PER_CHUNK))
    columns = data.shape[1:]
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(ROWS_PER_CHUNK, *columns),
        shards=(num_chunks * ROWS_PER_CHUNK, *columns),
        compressors=[
            zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
            zarr.codecs.Crc32cCodec(),
        ],
        fill_value=0,
        dimension_names=("row", "column")[: data.ndim],
        config={"write_empty_chunks": True},  # all-zero objects too: none may be missing
    )
    if data.size:
        array[...] = cast("Any", data)
