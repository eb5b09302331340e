"""The Zarr half of a shard: one row an answered teacher token, in order of view, chunk and token.

Axes: M answered teacher token, L such a token in a chunk of two or more, K kept logit in rank
order, J cached temperature. Arrays under tokens.zarr (Zarr v3, inner chunks of 1024 rows, one shard
object an array); what has no column is left out:

    ids_low    uint16  [M, K]   the low 16 bits of the ids
    ids_high   uint8   [M, K']  the bits above: 4 ids a byte, the first in the lowest bits, where 2
                                bits do (K' = ceil(K / 4)), else one (K' = K); only above 65,536
    logits     float32 [M, K]   logits_dtype float32: exact
    logit_max  float32 [M]      logits_dtype float16: the first logit of the row
    logit_step uint16  [M, K]   logits_dtype float16: bits(h_k) - bits(h_(k-1)) modulo 2^16, with
                                h_k = float16(z_k - logit_max), bits(h_(-1)) = 0
    logsumexp  float32 [M, J]
    gold_logp  float32 [L]      of a chunk of one token it is the chunk's own logp
    sketch     uint8   [N]      the integers of the sketch [M, R], coded (see `sketch_coder`)

The steps lose nothing of the float16 values and take two thirds of their room. Inner chunks go
through Blosc(zstd 1, shuffle), then CRC-32C. A missing object would read as zeros: so decoding
starts from the bytes of every object, and refuses if one is not there.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype

from storage_schemas.basis import Basis
from storage_schemas.errors import CacheCorruptError
from storage_schemas.examples import Ints
from storage_schemas.expansion import check_expansion
from storage_schemas.identity import KeptIdentity, SketchTail
from storage_schemas.sketch_coder import (
    NUM_CLASSES,
    NUM_TABLES,
    TOP,
    SketchCoder,
    decode_sketch,
    encode_sketch,
)
from storage_schemas.targets import Floats, KeptTargets

Array = NDArray[Any]

TOKENS_FOLDER = "tokens.zarr"
ROWS_PER_CHUNK = 1024
_BYTES_PER_CHUNK = 2**16
_ANY = -1
_CODECS = ("sharding_indexed", "bytes", "blosc", "crc32c")
_INDEX_CODECS = ("bytes", "crc32c")
_INDEX_ENTRY, _INDEX_CHECKSUM = 16, 4  # bytes: offset and size of a chunk; CRC-32C, last
_BLOSC_HEADER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """How many rows the arrays of one shard have; num_joint of chunks of two tokens or more."""

    num_rows: int
    num_joint: int


def array_shapes(kept: KeptIdentity, rows: TokenRows) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of each array; none where no tokens are kept."""
    if not kept.has_tokens:
        return {}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    row, top = (rows.num_rows,), (rows.num_rows, kept.top_k)
    if kept.top_k:
        shapes["ids_low"] = ("uint16", top)
        if bits := high_bits(kept.vocab_size):
            width = -(-kept.top_k // 4) if bits == 2 else kept.top_k
            shapes["ids_high"] = ("uint8", (rows.num_rows, width))
        if kept.logits_dtype == "float32":
            shapes["logits"] = ("float32", top)
        else:
            shapes |= {"logit_max": ("float32", row), "logit_step": ("uint16", top)}
    shapes["logsumexp"] = ("float32", (rows.num_rows, len(kept.temperatures)))
    shapes["gold_logp"] = ("float32", (rows.num_joint,))
    if isinstance(kept.tail, SketchTail):
        shapes["sketch"] = ("uint8", (_ANY * min(1, rows.num_rows),))
    return shapes


def high_bits(vocab_size: int) -> int:
    """Bits an id that ids_high holds: 0, 2 or 8."""
    above = max(0, (vocab_size - 1).bit_length() - 16)
    assert above <= 8, "ids have at most 24 bits"
    return 0 if above == 0 else 2 if above <= 2 else 8


def array_files(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Paths under tokens.zarr of one array; without elements it has no shard object."""
    if 0 in shape:
        return (f"{name}/zarr.json",)
    return (f"{name}/zarr.json", "/".join([name, "c", *("0" for _ in shape)]))


def token_files(kept: KeptIdentity, rows: TokenRows) -> frozenset[str]:
    """Every path under tokens.zarr that a shard with that many rows has."""
    shapes = array_shapes(kept, rows)
    if not shapes:
        return frozenset()
    files = (path for name, (_, shape) in shapes.items() for path in array_files(name, shape))
    return frozenset(("zarr.json", *files))


def encode_tokens(
    tokens: KeptTargets, kept: KeptIdentity, basis: Basis | None, is_joint_M: NDArray[np.bool_]
) -> dict[str, bytes]:
    """The files under tokens.zarr, by path; is_joint_M marks tokens of chunks of two or more."""
    arrays: dict[str, Array] = {
        "logsumexp": tokens.logsumexp_MJ,
        "gold_logp": tokens.gold_logp_M[is_joint_M],
        "ids_low": (tokens.ids_MK & 0xFFFF).astype(np.uint16),
        "ids_high": _high_plane(tokens.ids_MK, high_bits(kept.vocab_size)),
    }
    if kept.logits_dtype == "float32":
        arrays["logits"] = tokens.logits_MK
    elif kept.top_k:
        arrays["logit_max"], arrays["logit_step"] = to_steps(tokens.logits_MK)
    if basis is not None and basis.coder is not None:
        arrays["sketch"] = encode_sketch(tokens.sketch_MR, basis.coder)
    rows = TokenRows(num_rows=len(is_joint_M), num_joint=int(is_joint_M.sum()))
    shapes = array_shapes(kept, rows)
    for name, (dtype, shape) in shapes.items():
        got = arrays[name]
        assert _fits(str(got.dtype), got.shape, dtype, shape), f"{name}: expected {dtype} {shape}"
    files = encode_group({name: arrays[name] for name in shapes})
    assert files.keys() == token_files(kept, rows), "an object is missing"
    return files


def decode_tokens(
    files: Mapping[str, bytes],
    kept: KeptIdentity,
    coder: SketchCoder | None,
    *,
    is_joint_M: NDArray[np.bool_],
    chunk_logp_M: Floats,
    with_top_k: bool = True,
) -> KeptTargets:
    """The rows of tokens.zarr, from the bytes of its files.

    chunk_logp_M: the logp of the chunk that each token belongs to. What is not asked for is left
    out and not decoded: the top k (K = 0), and without a coder the sketch (R = 0).
    """
    rows = TokenRows(num_rows=len(is_joint_M), num_joint=int(is_joint_M.sum()))
    gold_logp_M = chunk_logp_M.copy()
    gold_logp_M[is_joint_M] = decode_array(files, kept, rows, "gold_logp")
    ids_MK = np.empty((rows.num_rows, 0), np.int32)
    logits_MK = np.empty((rows.num_rows, 0), np.float32)
    sketch_MR = np.empty((rows.num_rows, 0), np.int16)
    if with_top_k and kept.top_k:
        ids_MK, logits_MK = decode_ids(files, kept, rows), decode_logits(files, kept, rows)
    if coder is not None:
        coded = decode_array(files, kept, rows, "sketch")
        sketch_MR = decode_sketch(coded, rows.num_rows, coder)
    return KeptTargets(
        ids_MK=ids_MK,
        logits_MK=logits_MK,
        logsumexp_MJ=decode_array(files, kept, rows, "logsumexp"),
        gold_logp_M=gold_logp_M,
        sketch_MR=sketch_MR,
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )


def encode_basis(basis: Basis) -> dict[str, bytes]:
    """The files of the basis, by path under its folder."""
    arrays: dict[str, Array] = {
        "mean": basis.mean_H,
        "encode": basis.encode_HR,
        "scale": basis.scale_R,
        "decode": basis.decode_RV,
        "base": basis.base_V,
        "bias": basis.bias_V,
        "constants": np.array([basis.step, basis.temperature], np.float64),
    }
    if basis.coder is not None:
        coder = basis.coder
        arrays |= {
            "coder_shift": coder.shift_R,
            "coder_weight": coder.weight_R,
            "coder_mean": coder.mean_R,
            "coder_table": coder.table_RG,
            "coder_frequency": coder.frequency_BA,
        }
    return encode_group(arrays)


def decode_basis(files: Mapping[str, bytes]) -> Basis:
    """The basis from the bytes of its files."""

    def array(name: str, dtype: str, *shape: int) -> Array:
        return read_array(files, name, dtype, shape)

    base_V = array("base", "float32", _ANY)
    encode_HR = array("encode", "float32", _ANY, _ANY)
    hidden, rank = encode_HR.shape
    coder = None
    if rank:
        coder = SketchCoder(
            shift_R=array("coder_shift", "uint8", rank),
            weight_R=array("coder_weight", "int32", rank),
            mean_R=array("coder_mean", "int32", rank),
            table_RG=array("coder_table", "uint8", rank, NUM_CLASSES),
            frequency_BA=array("coder_frequency", "uint16", NUM_TABLES, 2 * TOP + 1),
        )
    step, temperature = array("constants", "float64", 2).tolist()
    return Basis(
        mean_H=array("mean", "float32", hidden),
        encode_HR=encode_HR,
        scale_R=array("scale", "float32", rank),
        decode_RV=array("decode", "float16", rank, len(base_V)),
        base_V=base_V,
        bias_V=array("bias", "float32", len(base_V)),
        step=step,
        temperature=temperature,
        coder=coder,
    )


def decode_ids(files: Mapping[str, bytes], kept: KeptIdentity, rows: TokenRows) -> Ints:
    """The kept ids, whole again."""
    ids_MK = decode_array(files, kept, rows, "ids_low").astype(np.int32)
    bits = high_bits(kept.vocab_size)
    if bits:
        high = decode_array(files, kept, rows, "ids_high")
        if bits == 2:
            shifts = np.arange(0, 8, 2, dtype=np.uint8)
            high = ((high[:, :, None] >> shifts) & 3).reshape(rows.num_rows, 4 * high.shape[1])
            high = high[:, : kept.top_k]
        ids_MK |= high.astype(np.int32) << 16
    return ids_MK


def decode_logits(files: Mapping[str, bytes], kept: KeptIdentity, rows: TokenRows) -> Floats:
    """The kept logits as float32, whatever they are stored as."""
    if kept.logits_dtype == "float32":
        return decode_array(files, kept, rows, "logits")
    return from_steps(
        decode_array(files, kept, rows, "logit_max"), decode_array(files, kept, rows, "logit_step")
    )


def encode_group(arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """The files of a Zarr group of these arrays, by path; the same arrays give the same bytes."""
    objects: dict[str, Buffer] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(objects))
    for name, data in arrays.items():
        _write_array(group, name, data)
    return {path: data.to_bytes() for path, data in objects.items()}


def decode_array(
    files: Mapping[str, bytes], kept: KeptIdentity, rows: TokenRows, name: str
) -> Array:
    """One array of tokens.zarr; CRC-32C is verified, and a missing object is an error."""
    return read_array(files, name, *array_shapes(kept, rows)[name])


def read_array(files: Mapping[str, bytes], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """An array of a group, which must have this dtype and shape (-1: any size)."""
    buffer = default_buffer_prototype().buffer
    objects = {
        path: buffer.from_bytes(data) for path, data in files.items() if path.startswith(f"{name}/")
    }
    try:
        _check_array(files, name, dtype, shape)
        store = zarr.storage.MemoryStore(objects)
        array = zarr.open_array(store, path=name, mode="r", zarr_format=3)
        assert _fits(str(array.dtype), array.shape, dtype, shape), "as its description says"
        return np.asarray(array[...])
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, MemoryError) as error:
        raise CacheCorruptError(
            f"array {name}: expected {dtype} {list(shape)} whole and undamaged: {error}"
        ) from error


def _check_array(files: Mapping[str, bytes], name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Raises unless zarr.json says what a writer of this project says, and its object as much.

    zarr would look for whatever codec is named, among all that is installed, read its older format
    too, and make room for whatever size is claimed: so these are checked before it sees them.
    """
    if f"{name}/zarr.json" not in files:
        raise CacheCorruptError(f"got no {name}/zarr.json")
    got: Any = json.loads(files[f"{name}/zarr.json"])
    found = tuple(got["shape"])
    if not all(type(size) is int and size >= 0 for size in found) or not _fits(
        got["data_type"], found, dtype, shape
    ):
        raise CacheCorruptError(f"got {got['data_type']} {list(found)}")
    inner, outer = _chunks(np.dtype(dtype), found)
    if (got["zarr_format"], got["node_type"]) != (3, "array") or got.get("storage_transformers"):
        raise CacheCorruptError(f"got another kind of array in {name}/zarr.json")
    if _packing(got) != {"outer": outer, "inner": inner, "codecs": _CODECS, "index": _INDEX_CODECS}:
        raise CacheCorruptError(f"got other chunks or codecs in {name}/zarr.json: {_packing(got)}")
    for path in array_files(name, found)[1:]:
        if path not in files:
            raise CacheCorruptError(f"got no {path}")
        _check_object(files[path], path, outer[0] // inner[0], math.prod(inner), np.dtype(dtype))


def _packing(got: Any) -> dict[str, Any]:
    (sharding,) = got["codecs"]
    how = sharding["configuration"]
    return {
        "outer": tuple(got["chunk_grid"]["configuration"]["chunk_shape"]),
        "inner": tuple(how["chunk_shape"]),
        "codecs": (sharding["name"], *(codec["name"] for codec in how["codecs"])),
        "index": tuple(codec["name"] for codec in how["index_codecs"]),
    }


def _check_object(
    data: bytes, path: str, num_chunks: int, chunk_size: int, dtype: np.dtype[Any]
) -> None:
    """Raises unless every inner chunk is there and says that it unpacks to a chunk's bytes."""
    chunk_bytes = chunk_size * dtype.itemsize
    check_expansion(num_chunks * chunk_bytes, len(data), path)
    end = len(data) - _INDEX_CHECKSUM
    start = end - num_chunks * _INDEX_ENTRY
    if start < 0:
        raise CacheCorruptError(f"got {path} without room for its index")
    index: list[list[int]] = np.frombuffer(data[start:end], "<u8").reshape(-1, 2).tolist()
    for offset, size in index:
        if offset + size > start or size < _BLOSC_HEADER:
            raise CacheCorruptError(f"got a chunk outside of {path}, or none")
        unpacked = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if unpacked != chunk_bytes:
            raise CacheCorruptError(
                f"got a chunk of {path} that unpacks to {unpacked} bytes, not {chunk_bytes}"
            )


def _fits(got_dtype: str, got_shape: tuple[int, ...], dtype: str, shape: tuple[int, ...]) -> bool:
    return (
        got_dtype == dtype
        and len(got_shape) == len(shape)
        and all(size in (found, _ANY) for found, size in zip(got_shape, shape, strict=True))
    )


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
    inner, outer = _chunks(data.dtype, data.shape)
    packing = zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=inner,
        shards=outer,
        compressors=[packing, zarr.codecs.Crc32cCodec()],
        fill_value=0,
        dimension_names=("row", "column")[: data.ndim],
        config={"write_empty_chunks": True},  # all-zero objects too: none may be missing
    )
    if data.size:
        array[...] = cast("Any", data)


def _chunks(
    dtype: np.dtype[Any], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of an array of this shape: the inner chunks, and the one object that they are in."""
    rows = _BYTES_PER_CHUNK if len(shape) == 1 and dtype == np.uint8 else ROWS_PER_CHUNK
    columns = tuple(max(1, size) for size in shape[1:])
    num_chunks = max(1, -(-shape[0] // rows))
    return (rows, *columns), (num_chunks * rows, *columns)


def _high_plane(ids_MK: Ints, bits: int) -> NDArray[np.uint8]:
    high = (ids_MK >> 16).astype(np.uint8)
    if bits != 2:
        return high
    columns = -(-high.shape[1] // 4) * 4
    fours = np.zeros((len(high), columns), np.uint8)
    fours[:, : high.shape[1]] = high
    fours = fours.reshape(len(high), columns // 4, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    return np.bitwise_or.reduce(fours, axis=2)
