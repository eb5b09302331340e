"""What others may hand us to read, made to do harm: `python tests/hostile/cases.py`.

A seal and a hash prove that nothing was changed, not who wrote it: so every hostile cache here is
sealed and hashed anew, as its maker would. A case is refused if ONE error of this project comes
before any harm: no canary's file, nothing changed outside, no password repeated, in `SECONDS`.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `tiny`
sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout, before what is installed
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from canary import module, pickled
from numcodecs import Pickle
from safetensors.torch import save_file
from tiny import Tiny

from pipeline.cache.reader import CacheReader
from pipeline.cache.verify import verify_cache
from pipeline.config.models import StudentConfig
from pipeline.config.recipe import Recipe, load_recipe, parse_recipe
from pipeline.config.sweep import load_sweep
from pipeline.fidelity import measure_fidelity
from pipeline.student.checkpoint import saved_student
from pipeline.student.model import load_student
from pipeline.student_train import run_student_train
from pipeline.teacher.examples import load_tokenizers
from pipeline.teacher.load import load_backend
from pipeline.teacher_cache import run_teacher_cache
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import (
    CacheCorruptError,
    CheckpointError,
    RecipeError,
    RecordError,
    TidecacheError,
)
from storage_schemas.examples import Message
from storage_schemas.manifest import LEDGER_FOLDER, MANIFEST_FILE, LedgerEntry
from storage_schemas.parquet_layout import CHUNKS, decode_table, encode_table
from storage_schemas.seal import sealed_fields, unsealed

PASSWORD = "hunter2-do-not-repeat"
SECONDS = 30  # in which a refusal comes, on a busy machine
_HUGE = 2**60
_SKETCH = {"type": "sketch", "calibration_records": 4, "step": 0.2}


@dataclass(frozen=True, slots=True)
class Ground:
    """Where one case happens: a copy of a sound cache, a place outside of it, a canary."""

    tiny: Tiny
    folder: Path
    sound: Path

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def recipe(self, **overrides: Any) -> Recipe:
        return self.tiny.recipe("b", self.folder, **_OVERRIDES, **overrides)


_OVERRIDES: dict[str, Any] = {"targets.k": 4, "targets.tail": _SKETCH}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`attack` lays out what is hostile and reads it, as a command of this project would."""

    name: str
    attack: Callable[[Ground], object]
    error: type[TidecacheError]
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a case; `detail` is the error, or what was wrong with it."""

    name: str
    is_refused: bool
    detail: str


# ------------------------------------------------------------------ sealing anew


def reseal(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what a manifest or ledger entry says, and seals it as its maker would."""
    fields = unsealed(file.read_bytes())
    change(fields)
    file.write_bytes(sealed_fields(fields))


def entry_of(cache: Path) -> Path:
    return sorted((cache / LEDGER_FOLDER).iterdir())[0]


def files_in(cache: Path) -> LedgerEntry:
    return LedgerEntry.model_validate(unsealed(entry_of(cache).read_bytes()))


def put(cache: Path, record: Path, changed: dict[str, bytes]) -> None:
    """Writes files, and enters their sizes and hashes in the record that names them."""

    def enter(fields: dict[str, Any]) -> None:
        listed = [
            *fields.get("files", ()),
            *fields.get("basis", ()),
            *fields.get("vocabularies", ()),
        ]
        for path, data in changed.items():
            (cache / path).parent.mkdir(parents=True, exist_ok=True)
            (cache / path).write_bytes(data)
            digest = xxhash.xxh3_128_hexdigest(data)
            entry = {"path": path, "size": len(data), "xxh3_128": digest}
            known = [one for one in listed if one["path"] == path]
            if known:
                known[0].update(entry)
            else:
                fields["basis" if "basis" in fields else "files"].append(entry)

    reseal(record, enter)


def in_shard(cache: Path, end: str) -> str:
    """The path of the file of the first shard that ends so."""
    return next(file.path for file in files_in(cache).files if file.path.endswith(end))


def in_basis(cache: Path, end: str) -> str:
    fields = unsealed((cache / MANIFEST_FILE).read_bytes())
    return next(file["path"] for file in fields["basis"] if file["path"].endswith(end))


# ------------------------------------------------------------------ readers


def read(ground: Ground) -> object:
    """As training and the report do."""
    reader = CacheReader.open(ground.cache)
    basis = reader.read_basis()
    coder = None if basis is None else basis.coder
    return [reader.read_shard(entry, coder) for entry in reader.entries]


def verify(ground: Ground) -> object:
    """`tidecache verify`: its first fault as the error that it is."""
    report = verify_cache(ground.cache)
    if not report.is_sound:
        raise CacheCorruptError(str(report.faults[0]))
    return report


def write(ground: Ground) -> object:
    """`tidecache teacher-cache`, which adds to what is there."""
    return run_teacher_cache(ground.recipe(**{"noise.views": 3}))


# ------------------------------------------------------------------ caches: names and links


def _path_in_ledger(path: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        reseal(entry_of(ground.cache), lambda fields: fields["files"][0].update(path=path))
        return read(ground)

    return attack


def _path_in_manifest(path: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        file = ground.cache / MANIFEST_FILE
        reseal(file, lambda fields: fields["vocabularies"][0].update(path=path))
        return read(ground)

    return attack


def _folder_in_ledger(folder: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        reseal(entry_of(ground.cache), lambda fields: fields.update(folder=folder))
        return read(ground)

    return attack


def _link(place: str, then: Callable[[Ground], object]) -> Callable[[Ground], object]:
    """The real file or folder is moved outside, and a link to it left in its place."""

    def attack(ground: Ground) -> object:
        wanted = place.replace("ENTRY", entry_of(ground.cache).stem)
        target = ground.outside / "moved"
        ground.outside.mkdir()
        shutil.move(ground.cache / wanted, target)
        (ground.cache / wanted).symlink_to(target)
        return then(ground)

    return attack


def _link_for_writers(ground: Ground) -> object:
    """Scratch that lies elsewhere: what a dead writer left there would be removed."""
    precious = ground.outside / "writer-of-novels" / "chapter-1"
    precious.parent.mkdir(parents=True)
    precious.write_text("It was a dark and stormy night.")
    shutil.rmtree(ground.cache / "tmp", ignore_errors=True)
    (ground.cache / "tmp").symlink_to(ground.outside)
    try:
        return write(ground)
    finally:
        if not precious.exists() or len(list(ground.outside.rglob("*"))) != 2:
            ground.canary.write_text("something outside was changed")


# ------------------------------------------------------------------ caches: numbers and claims


def _counts(**counts: Any) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        reseal(entry_of(ground.cache), lambda fields: fields["counts"].update(counts))
        return read(ground)

    return attack


def _many_views(ground: Ground) -> object:
    """A shard that claims 2^60 views, by its entry's own name."""
    entry = entry_of(ground.cache)
    name = f"p00000-v0000-{_HUGE}"

    def change(fields: dict[str, Any]) -> None:
        old = fields["folder"]
        fields.update(shard=name, folder=f"shards/{name}", view_stop=_HUGE)
        for file in fields["files"]:
            file["path"] = file["path"].replace(old, f"shards/{name}")

    reseal(entry, change)
    entry.rename(entry.with_name(f"{name}.json"))
    return read(ground)


def _long_chunk(ground: Ground) -> object:
    """One chunk of two thousand million tokens, which would be a row each."""
    path = in_shard(ground.cache, "chunks.parquet")
    table = decode_table(CHUNKS, (ground.cache / path).read_bytes())
    columns = {name: table.arrays[name].copy() for name in CHUNKS}
    columns["t0"][0], columns["t1"][0] = 0, 2**31 - 1
    put(ground.cache, entry_of(ground.cache), {path: encode_table(CHUNKS, columns)})
    return read(ground)


def _not_finite(ground: Ground) -> object:
    """NaN is no JSON; Python reads it all the same."""
    file = ground.cache / MANIFEST_FILE
    fields = unsealed(file.read_bytes())
    fields["calibration"]["grad_error"] = float("nan")
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["seal"] = xxhash.xxh3_128_hexdigest(canonical.encode())
    file.write_text(json.dumps(fields, sort_keys=True, indent=2) + "\n")
    return read(ground)


def _deep(name: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        file = ground.cache / name if name == MANIFEST_FILE else entry_of(ground.cache)
        file.write_text("[" * 200_000)
        return read(ground)

    return attack


def _no_vocabulary(ground: Ground) -> object:
    file = ground.cache / MANIFEST_FILE
    reseal(file, lambda fields: fields.update(vocabularies=fields["vocabularies"][:1]))
    return read(ground)


# ------------------------------------------------------------------ caches: Zarr


def _zarr_json(
    place: Callable[[Path], str], change: Callable[[dict[str, Any]], object]
) -> Callable[[Ground], object]:
    """An array of a shard (or of the basis) that describes itself otherwise."""

    def attack(ground: Ground) -> object:
        path = place(ground.cache)
        record = ground.cache / MANIFEST_FILE if "basis" in path else entry_of(ground.cache)
        fields = json.loads((ground.cache / path).read_text())
        change(fields)
        put(ground.cache, record, {path: json.dumps(fields).encode()})
        return read(ground)

    return attack


def _unpickling_filter(ground: Ground) -> object:
    """The basis in Zarr's second format, with a filter `pickle` and a chunk that is one."""
    folder = in_basis(ground.cache, "base/zarr.json").removesuffix("/zarr.json")
    about = json.loads((ground.cache / folder / "zarr.json").read_text())
    size = about["shape"][0]
    old = {
        "zarr_format": 2,
        "shape": [size],
        "chunks": [size],
        "dtype": "<f4",
        "compressor": None,
        "filters": [Pickle().get_config()],
        "fill_value": 0,
        "order": "C",
    }

    def only_the_old(fields: dict[str, Any]) -> None:
        fields["basis"] = [f for f in fields["basis"] if not f["path"].startswith(f"{folder}/")]

    reseal(ground.cache / MANIFEST_FILE, only_the_old)
    files = {f"{folder}/.zarray": json.dumps(old).encode(), f"{folder}/0": pickled(ground.canary)}
    put(ground.cache, ground.cache / MANIFEST_FILE, files)
    return read(ground)


def _bomb_of_zeros(ground: Ground) -> object:
    """A chunk whose header says that it unpacks to almost 2 GiB."""
    path = in_shard(ground.cache, "logsumexp/c/0/0")
    data = bytearray((ground.cache / path).read_bytes())
    data[4:8] = (2**31 - 2**20).to_bytes(4, "little")
    put(ground.cache, entry_of(ground.cache), {path: bytes(data)})
    return read(ground)


def _huge_shape(fields: dict[str, Any]) -> None:
    fields["shape"] = [_HUGE]
    grid = fields["chunk_grid"]["configuration"]
    grid["chunk_shape"] = [-(-_HUGE // 1024) * 1024]


# ------------------------------------------------------------------ caches: Parquet


def _parquet(change: Callable[[pa.Table, Path], pa.Table]) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        path = in_shard(ground.cache, "examples.parquet")
        table = pq.read_table(ground.cache / path)
        sink = pa.BufferOutputStream()
        pq.write_table(change(table, ground.canary), sink, write_page_checksum=True)
        data = sink.getvalue().to_pybytes()
        put(ground.cache, entry_of(ground.cache), {path: data})
        return read(ground)

    return attack


def _extension(table: pa.Table, canary: Path) -> pa.Table:
    """Arrow's extension type that pyarrow once unpickled from a file's schema."""
    about = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickled(canary),
    }
    field = table.schema.field(0).with_metadata(about)
    return table.cast(table.schema.set(0, field))


def _pandas(table: pa.Table, canary: Path) -> pa.Table:
    return table.replace_schema_metadata({"pandas": pickled(canary)})


def _repeated(table: pa.Table, canary: Path) -> pa.Table:
    """A column of one number, so often that a few bytes become hundreds of megabytes."""
    del canary
    column = pa.array(np.zeros(40_000_000, np.int32))
    return pa.table({table.schema.names[0]: column})


# ------------------------------------------------------------------ recipes and their kin


def _secret(key: str, value: object) -> Callable[[Ground], object]:
    """In the recipe's file, and as `--set`: neither may repeat it."""

    def attack(ground: Ground) -> object:
        fields = ground.recipe().model_dump(mode="json", exclude_none=True)
        table = fields
        *outer, last = key.split(".")
        for name in outer:
            table = table[name]
        table[last] = value
        path = ground.folder / "recipe.json"
        path.write_text(json.dumps(fields))
        return load_recipe(path)

    return attack


def _override(text: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        fields = ground.recipe().model_dump(mode="json", exclude_none=True)
        return parse_recipe(fields, where="recipe", overrides=[text])

    return attack


def _sweep(text: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        path = ground.folder / "sweep.toml"
        path.write_text(text)
        return load_sweep(path)

    return attack


def _deep_recipe(ground: Ground) -> object:
    path = ground.folder / "recipe.json"
    path.write_text("[" * 200_000)
    return load_recipe(path)


# ------------------------------------------------------------------ models and checkpoints


def _model(ground: Ground, name: str = "student") -> Path:
    """A copy of a model's folder to spoil."""
    return Path(shutil.copytree(ground.tiny.folder / name, ground.folder / "model"))


def _pickled_weights(ground: Ground) -> Path:
    folder = _model(ground)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(ground.canary))
    return folder


def _pickled_student(ground: Ground) -> object:
    return load_student(StudentConfig(model=str(_pickled_weights(ground))))


def _pickled_teacher(ground: Ground) -> object:
    recipe = ground.recipe(**{"teacher.model": str(_pickled_weights(ground))})
    return load_backend(recipe.teacher, block_size=recipe.teacher_block_size)


def _adapter(ground: Ground) -> object:
    folder = _model(ground)
    (folder / "model.safetensors").unlink()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(ground.tiny.folder / "student")}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter_model.bin").write_bytes(pickled(ground.canary))
    return load_student(StudentConfig(model=str(folder)))


def _weights_elsewhere(ground: Ground) -> object:
    folder = _model(ground)
    ground.outside.mkdir()
    shutil.move(folder / "model.safetensors", ground.outside / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../outside/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return load_student(StudentConfig(model=str(folder)))


def _with_code(ground: Ground, *, known_type: bool = False) -> Path:
    """A student whose configuration names code of its own that does harm when imported."""
    folder = _model(ground)
    (folder / "evil.py").write_text(module(ground.canary))
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    fields["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    if not known_type:
        fields["model_type"] = "evil"
    file.write_text(json.dumps(fields))
    return folder


def _code_without_leave(ground: Ground) -> object:
    return load_student(StudentConfig(model=str(_with_code(ground))))


def _code_at_a_branch(side: str) -> Callable[[Ground], object]:
    def attack(ground: Ground) -> object:
        about = {"model": "someone/model", "revision": "main", "trust_remote_code": True}
        fields = {f"{side}.{name}": value for name, value in about.items()}
        recipe = ground.recipe(**fields)
        if side == "student":
            return load_student(recipe.student)
        return load_tokenizers(recipe)

    return attack


def _code_unpinned(ground: Ground) -> object:
    return ground.recipe(**{"student.trust_remote_code": True})


def _code_elsewhere(file: str, auto: str, name: object) -> Callable[[Ground], object]:
    """Code in another repository, which no revision here pins."""

    def attack(ground: Ground) -> object:
        folder = _model(ground)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {auto: name}}))
        student = StudentConfig(model=str(folder), revision="here", trust_remote_code=True)
        return load_student(student)

    return attack


def _cache_that_allows_code(ground: Ground) -> object:
    """A cache whose own recipe.json grants its teacher's code leave to run."""
    folder = ground.folder / "teacher"
    shutil.copytree(ground.tiny.folder / "teacher-b", folder)
    (folder / "evil.py").write_text(module(ground.canary))
    for file in ("config.json", "tokenizer_config.json"):
        fields = json.loads((folder / file).read_text())
        classes: dict[str, Any] = {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
        if file == "config.json":
            classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
            fields["model_type"] = "evil"
        (folder / file).write_text(json.dumps(fields | {"auto_map": classes}))
    path = ground.cache / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe["teacher"] |= {
        "model": str(folder),
        "revision": "here",
        "trust_remote_code": True,
        "family": "llada",
        "attention": {"type": "full"},
    }
    path.write_text(json.dumps(recipe))
    return measure_fidelity(ground.cache, num_views=1)


def _checkpoint_that_allows_code(ground: Ground) -> object:
    """A student whose own recipe.json grants its code leave to run."""
    folder = _with_code(ground)
    recipe = ground.recipe(**{"student.revision": "here", "student.trust_remote_code": True})
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    return load_student(saved_student(str(folder)))


def _resume(name: str) -> Callable[[Ground], object]:
    """A pickle beside a checkpoint's files, under a name that is unpickled elsewhere."""

    def attack(ground: Ground) -> object:
        recipe, checkpoint = _stopped(ground)
        (checkpoint / name).write_bytes(pickled(ground.canary))
        return run_student_train(recipe, shows_progress=False)

    return attack


def _foreign_state(ground: Ground) -> object:
    """A training state without what training asks it for."""
    recipe, checkpoint = _stopped(ground)
    save_file({"0": torch.zeros(1)}, checkpoint / "training_state.safetensors")
    return run_student_train(recipe, shows_progress=False)


def _stopped(ground: Ground) -> tuple[Recipe, Path]:
    """A run that was stopped after its first step, and its checkpoint."""
    recipe = ground.recipe()
    summary = run_student_train(recipe, should_stop=lambda: True, shows_progress=False)
    assert not summary.is_complete, "there is something to go on with"
    return recipe, next(Path(recipe.train.output).glob("checkpoint-*"))


def _template(ground: Ground) -> object:
    """A chat template that reaches for what a sandbox keeps from it."""
    folder = _model(ground)
    for file in folder.glob("*.jinja"):
        file.unlink()
    reach = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": reach}))
    messages = [Message(role="user", content="hello")]
    return ChatTokenizer.load(str(folder)).chat_text(messages, add_generation_prompt=True)


_MOVED = "got a link to elsewhere"
_UNREPEATED = "expected an address without credentials"
_S3, _HTTPS = f"s3://AKIA:{PASSWORD}@bucket/cache", f"https://user:{PASSWORD}@host/x.jsonl"
_SIGNED = f"https://host/x.jsonl?X-Amz-Signature={PASSWORD}"
_SHARED = f"az://container/x.jsonl?sv=2024&sig={PASSWORD}"
_HF_TOKEN = "hf_" + "x" * 30 + PASSWORD.replace("-", "")


def _cases() -> Iterator[Case]:
    def case(
        name: str, attack: Callable[[Ground], object], error: type[TidecacheError], says: str
    ) -> Case:
        return Case(name=name, attack=attack, error=error, says=says)

    corrupt = CacheCorruptError
    for name, path in {
        "goes up": "shards/../../outside/secret",
        "is absolute": "/etc/passwd",
        "has empty parts": "shards//x",
        "has a backslash": "shards\\..\\..\\x",
        "commands a terminal": "shards/\x1b]0;owned\x07",
    }.items():
        yield case(f"a ledger's path {name}", _path_in_ledger(path), corrupt, "relative path")
        yield case(f"a manifest's path {name}", _path_in_manifest(path), corrupt, "relative path")
    yield case(
        "a manifest names a file of a shard as common",
        _path_in_manifest("shards/x/student.parquet"),
        corrupt,
        "common files in common/",
    )
    yield case("a shard's folder goes up", _folder_in_ledger("../outside"), corrupt, "relative")
    yield case("a shard's folder is another's", _folder_in_ledger("shards/p9"), corrupt, "folder")
    for what, place in {
        "manifest": MANIFEST_FILE,
        "ledger": LEDGER_FOLDER,
        "ledger's entry": f"{LEDGER_FOLDER}/ENTRY.json",
        "shards": "shards",
        "shard": "shards/ENTRY",
        "shard's table": "shards/ENTRY/chunks.parquet",
        "shard's array": "shards/ENTRY/tokens.zarr/logsumexp",
        "common folder": "common",
    }.items():
        yield case(f"the {what} links outside, read", _link(place, read), corrupt, _MOVED)
        yield case(f"the {what} links outside, verified", _link(place, verify), corrupt, _MOVED)
    for what, place in {"shards": "shards", "ledger": LEDGER_FOLDER}.items():
        yield case(f"the {what} link outside, written", _link(place, write), corrupt, _MOVED)
    yield case("the scratch links outside, written", _link_for_writers, corrupt, _MOVED)

    yield case("a ledger claims 2^60 rows", _counts(num_token_rows=_HUGE), corrupt, "token rows")
    yield case(
        "a ledger claims 2^60 joint rows", _counts(num_joint_rows=_HUGE), corrupt, "expected files"
    )
    yield case("a ledger claims 2^60 views", _many_views, corrupt, "999999")
    yield case("a ledger counts below nothing", _counts(num_views=-1), corrupt, "num_views")
    yield case("a ledger's counts are no numbers", _counts(num_views=1.5), corrupt, "num_views")
    yield case("a chunk claims 2^31 tokens", _long_chunk, corrupt, "chunks of 1 to")
    yield case("a manifest says NaN", _not_finite, corrupt, "Out of range float")
    yield case("a manifest is 200,000 levels deep", _deep(MANIFEST_FILE), corrupt, "expected JSON")
    yield case("a ledger's entry is as deep", _deep("entry"), corrupt, "a few levels")
    yield case("a manifest lacks a vocabulary", _no_vocabulary, corrupt, "teacher.parquet")

    def array(path: Path) -> str:
        return in_shard(path, "logsumexp/zarr.json")

    def base(path: Path) -> str:
        return in_basis(path, "base/zarr.json")

    def codec(fields: dict[str, Any]) -> None:
        codecs = fields["codecs"][0]["configuration"]["codecs"]
        codecs.insert(0, {"name": "numcodecs.pickle", "configuration": {}})

    def chunks(fields: dict[str, Any]) -> None:
        fields["codecs"][0]["configuration"]["chunk_shape"][0] = _HUGE

    def objects(fields: dict[str, Any]) -> None:
        fields["data_type"] = "object"

    yield case("an array names a codec that unpickles", _zarr_json(array, codec), corrupt, "codecs")
    yield case("an array claims huge chunks", _zarr_json(array, chunks), corrupt, "codecs")
    yield case("an array is of objects", _zarr_json(array, objects), corrupt, "got object")
    yield case(
        "an array of the basis is of 2^60 numbers",
        _zarr_json(base, _huge_shape),
        corrupt,
        "unpack to",
    )
    yield case(
        "an array of the basis is of Zarr's second format, with a pickle",
        _unpickling_filter,
        corrupt,
        "got no base/zarr.json",
    )
    yield case("a chunk unpacks to 2 GiB", _bomb_of_zeros, corrupt, "that unpacks to")

    yield case(
        "a table has an extension type with a pickle",
        _parquet(_extension),
        corrupt,
        "an extension type",
    )
    yield case("a table has pandas metadata", _parquet(_pandas), corrupt, "metadata of its own")
    yield case("a table repeats itself to gigabytes", _parquet(_repeated), corrupt, "to unpack to")

    for key, value in {
        "cache.path": _S3,
        "train.output": _S3,
        "records.paths": [_HTTPS],
        "student.model": _HTTPS,
        "teacher.revision": _HF_TOKEN,
        "held_out": {"records": {"type": "files", "paths": [_SIGNED]}},
        "workers": {"type": "dask", "count": 1, "address": f"tcp://user:{PASSWORD}@host:8786"},
    }.items():
        yield case(f"credentials in {key}", _secret(key, value), RecipeError, _UNREPEATED)
    yield case(
        "credentials in a query", _secret("records.paths", [_SHARED]), RecipeError, _UNREPEATED
    )
    yield case(
        "credentials in a chained address",
        _secret("records.paths", [f"zip://a.jsonl::{_S3}"]),
        RecipeError,
        _UNREPEATED,
    )
    yield case(
        "credentials where a list is expected",
        _secret("records.paths", _S3),
        RecipeError,
        _UNREPEATED,
    )
    yield case(
        "credentials under an unknown key", _secret("nonsense", _S3), RecipeError, _UNREPEATED
    )
    yield case("credentials in --set", _override(f"cache.path={_S3}"), RecipeError, _UNREPEATED)
    yield case("credentials in a broken --set", _override(_S3), RecipeError, _UNREPEATED)
    yield case(
        "credentials in a sweep's output",
        _sweep(f'recipe = "r.toml"\noutput = "{_S3}"\ngrid.train.seed = [0]\n'),
        RecipeError,
        _UNREPEATED,
    )
    yield case(
        "credentials in a sweep's grid",
        _sweep(f'recipe = "r.toml"\noutput = "o"\ngrid.cache.path = ["{_S3}"]\n'),
        RecipeError,
        _UNREPEATED,
    )
    yield case(
        "credentials in the address of a cache to look at",
        lambda ground: CacheReader.open(_S3),
        RecipeError,
        _UNREPEATED,
    )
    yield case("a recipe is 200,000 levels deep", _deep_recipe, RecipeError, "readable JSON")

    yield case("a student's weights are a pickle", _pickled_student, CheckpointError, "safetensors")
    yield case("a teacher's weights are a pickle", _pickled_teacher, CheckpointError, "safetensors")
    yield case("a student is an adapter with a pickle", _adapter, CheckpointError, "an adapter")
    yield case(
        "a student's index names weights outside", _weights_elsewhere, CheckpointError, "beside it"
    )
    yield case("a student brings code, no flag", _code_without_leave, RecipeError, "load at")
    yield case("remote code is allowed without a revision", _code_unpinned, RecipeError, "pinned")
    for side in ("student", "teacher"):
        yield case(
            f"the {side}'s code is at a branch",
            _code_at_a_branch(side),
            CheckpointError,
            "40 hex digits",
        )
    yield case(
        "a model's code is in another repository",
        _code_elsewhere("config.json", "AutoModelForCausalLM", "other/repo--evil.Model"),
        CheckpointError,
        "another repository",
    )
    yield case(
        "a tokenizer's code is in another repository",
        _code_elsewhere("tokenizer_config.json", "AutoTokenizer", [None, "other/repo--evil.Fast"]),
        CheckpointError,
        "another repository",
    )
    yield case(
        "a cache's recipe allows its teacher's code",
        _cache_that_allows_code,
        RecipeError,
        "trust_remote_code = true",
    )
    yield case(
        "a checkpoint's recipe allows its code",
        _checkpoint_that_allows_code,
        RecipeError,
        "load at",
    )
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "pytorch_model.bin",
        "adapter_model.bin",
        "training_args.bin",
        "scaler.pt",
    ):
        yield case(f"a checkpoint holds {name}", _resume(name), CheckpointError, name)
    yield case(
        "a checkpoint's state is another's", _foreign_state, CheckpointError, "training state"
    )
    yield case("a chat template leaves its sandbox", _template, RecordError, "is unsafe")


CASES = tuple(_cases())


# ------------------------------------------------------------------ running them


@contextmanager
def grounds(folder: Path, tiny: Tiny) -> Iterator[Callable[[], Ground]]:
    """Makes a sound cache once, and for each case a copy of it."""
    base = folder / "sound"
    run_teacher_cache(tiny.recipe("b", base, **_OVERRIDES))

    def make() -> Ground:
        place = Path(tempfile.mkdtemp(dir=folder))
        shutil.copytree(base / "cache", place / "cache")
        return Ground(tiny=tiny, folder=place, sound=base / "cache")

    yield make


def try_case(case: Case, ground: Ground) -> Verdict:
    """Whether the case is refused, by the right error, in time, and without harm."""
    began = time.monotonic()
    try:
        case.attack(ground)
        problem, said = "accepted", ""
    except TidecacheError as error:
        said = str(error)
        is_it = isinstance(error, case.error) and case.says in said
        problem = None if is_it else f"refused otherwise: {type(error).__name__}"
    except Exception as error:  # a traceback is no refusal
        problem, said = f"{type(error).__name__}, no error of ours", str(error)
    if ground.canary.exists():
        problem = f"harm was done: {ground.canary.read_text()}"
    elif PASSWORD in said or "\x1b" in said:
        problem = "the error repeats what it must not"
    elif problem is None and (seconds := time.monotonic() - began) > SECONDS:
        problem = f"it took {seconds:.0f} s"
    detail = said if problem is None else f"{problem}: {said}"
    return Verdict(name=case.name, is_refused=problem is None, detail=detail)


def run_cases() -> list[tuple[str, bool, str]]:
    """(name, was it accepted, detail) of every case."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "tiny").mkdir()
        with grounds(place, Tiny(place / "tiny")) as make:
            verdicts = [try_case(case, make()) for case in CASES]
    return [(one.name, not one.is_refused, one.detail) for one in verdicts]


def main() -> None:
    results = run_cases()
    for name, accepted, detail in results:
        if accepted:
            print(f"NOT REFUSED {name}: {detail}")
    figures = {"hostile_inputs": len(results), "hostile_accepted": sum(r[1] for r in results)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
