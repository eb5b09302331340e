"""The two records that make files a cache: its manifest, and one ledger entry a committed shard."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from storage_schemas.identity import CacheIdentity, Count, Positive, Stored

MANIFEST_FILE = "manifest.json"
RECIPE_FILE = "recipe.json"
COMMON_FOLDER = "common"
VOCABULARY_FOLDER = "vocabulary"
BASIS_FOLDER = "basis.zarr"
SHARDS_FOLDER = "shards"
LEDGER_FOLDER = "ledger"
SCRATCH_FOLDER = "tmp"

MOST_VIEWS = 999_999  # of a record: what is claimed beyond is nonsense, not a cache
_SHARD_NAME = re.compile(r"p(\d{5,9})-v(\d{4,6})-(\d{4,6})")


def shard_name(part: int, view_start: int, view_stop: int) -> str:
    """Folder and ledger name of views [view_start, view_stop) of one part: p00000-v0000-0004."""
    return f"p{part:05d}-v{view_start:04d}-{view_stop:04d}"


def views_in_name(name: str) -> tuple[int, range] | None:
    """Part and views that a shard's name tells, or None if it is no shard's name."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None:
        return None
    part, start, stop = map(int, match.groups())
    return part, range(start, stop)


def _stay_inside(path: str) -> str:
    parts = path.split("/")
    is_plain = path.isprintable() and "\\" not in path
    if not is_plain or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"expected a relative path inside the cache folder, got {path!r}")
    return str(PurePosixPath(path))


class FileEntry(Stored):
    """One immutable file: its path under the cache folder, bytes, and xxh3-128 in hex."""

    path: Annotated[str, AfterValidator(_stay_inside)]
    size: Count
    xxh3_128: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Layout(Stored):
    """How records are cut into parts: part p holds records [p n, (p + 1) n)."""

    records_per_part: Positive


class Calibration(Stored):
    """How the basis came about, and what it reached on the records of the search part.

    positions: answered positions of the calibration and of the search part. bytes_per_position of
    the coded sketch alone; overfit_bytes: how much less it was on the calibration part itself.
    kl: nats at each temperature (its text). grad_error: mean relative error of the TIDAL gradient
    at the sketch's temperature, lambda 0.3, with the teacher that sees no response token in the
    student's place, over positions with a tenth of the mean gradient or more.
    """

    positions: Positive
    search_positions: Count
    hidden_size: Positive
    rank: Count
    step: float | None
    bytes_per_position: float | None
    overfit_bytes: float | None
    kl: dict[str, float]
    grad_error: float | None


class Quantiles(Stored):
    """A measured quantity over positions or chunks."""

    mean: float
    p50: float
    p95: float
    max: float


class Fidelity(Stored):
    """How the stored answers differ from the live teacher's, on `views` stored views.

    chunk_logp_error: absolute, in nats. kl: KL(live || stored) at each temperature (its text), in
    nats; grad_error: relative error of the TIDAL gradient at the highest temperature, lambda 0.3,
    with the teacher that sees no response token in the student's place. The latter two only where
    distributions are kept.
    """

    measured_at: str
    views: Positive
    positions: Count
    chunk_logp_error: Quantiles
    kl: dict[str, Quantiles]
    grad_error: Quantiles | None


class Manifest(Stored):
    """What a cache is. `created_by` is the version of tidecache, for people only.

    basis: the files of the sketch's basis (none without one), made by `calibration`.
    """

    format: Literal["tidecache"] = "tidecache"
    created_by: str
    digest: str
    identity: CacheIdentity
    layout: Layout
    vocabularies: tuple[FileEntry, ...]
    basis: tuple[FileEntry, ...] = ()
    calibration: Calibration | None = None
    fidelity: Fidelity | None = None

    def vocabulary(self, side: Literal["student", "teacher"]) -> FileEntry:
        """The file that holds one tokenizer's tokens."""
        return next(file for file in self.vocabularies if file.path.endswith(f"/{side}.parquet"))

    @model_validator(mode="after")
    def _digest_fits(self) -> "Manifest":
        if self.digest != self.identity.digest:
            raise ValueError(
                f"expected digest {self.identity.digest} of the identity, got {self.digest}"
            )
        return self

    @model_validator(mode="after")
    def _files_are_common(self) -> "Manifest":
        names = [file.path.rpartition("/")[2] for file in self.vocabularies]
        if sorted(names) != ["student.parquet", "teacher.parquet"]:
            raise ValueError(f"expected student.parquet and teacher.parquet, got {names}")
        for file in (*self.vocabularies, *self.basis):
            if not file.path.startswith(f"{COMMON_FOLDER}/"):
                raise ValueError(f"expected common files in {COMMON_FOLDER}/, got {file.path}")
        for file in self.basis:
            if f"/{BASIS_FOLDER}/" not in file.path:
                raise ValueError(f"expected a basis in {BASIS_FOLDER}/, got {file.path}")
        return self


class Counts(Stored):
    """What a shard holds. num_masked counts student positions; skips are by reason.

    num_token_rows: answered teacher tokens; num_joint_rows: those in chunks of two or more.
    """

    num_records: Count
    num_examples: Count
    num_views: Count
    num_chunks: Count
    num_masked: Count
    num_token_rows: Count
    num_joint_rows: Count
    skips: dict[str, Positive]


class LedgerEntry(Stored):
    """One committed shard: the proof that these files are finished.

    Its folder is shards/NAME; on an object store, one of its own under that.
    """

    shard: str
    folder: Annotated[str, AfterValidator(_stay_inside)]
    part: Count
    view_start: Count
    view_stop: Annotated[int, Field(gt=0, le=MOST_VIEWS)]
    files: tuple[FileEntry, ...]
    counts: Counts

    @model_validator(mode="after")
    def _files_are_its_own(self) -> "LedgerEntry":
        expected = shard_name(self.part, self.view_start, self.view_stop)
        if self.shard != expected or self.view_start >= self.view_stop:
            raise ValueError(f"expected shard {expected} with a view or more, got {self.shard}")
        own = f"{SHARDS_FOLDER}/{self.shard}"
        if self.folder != own and self.folder.rpartition("/")[0] != own:
            raise ValueError(f"expected the folder {own} or one in it, got {self.folder}")
        for file in self.files:
            if not file.path.startswith(f"{self.folder}/"):
                raise ValueError(f"expected files under {self.folder}/, got {file.path}")
        return self

    @property
    def views(self) -> range:
        """The views that it holds of each example."""
        return range(self.view_start, self.view_stop)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    def inner_path(self, file: FileEntry) -> str:
        """The file's path under the shard's own folder."""
        return file.path.removeprefix(f"{self.folder}/")
