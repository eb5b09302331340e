"""Which weights these are: a digest for the cache's identity."""

import hashlib
from pathlib import Path

from pipeline.config.models import ModelSource
from pipeline.teacher.checkpoint import stored_config
from storage_schemas.errors import TeacherError


def weights_digest(source: ModelSource) -> str:
    """SHA-256 over a folder's config and safetensors files; for a hub name, the resolved commit.

    Where the folder's own code runs, its *.py count too: code decides the numbers.
    """
    folder = Path(source.model)
    if not folder.is_dir():
        return f"commit:{_hub_commit(source)}"
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) == 1 or not files[0].is_file():
        raise TeacherError(
            f"expected config.json and *.safetensors in {folder}, got "
            f"{sorted(path.name for path in folder.iterdir())}"
        )
    if source.trust_remote_code:
        files += sorted(folder.glob("**/*.py"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _hub_commit(source: ModelSource) -> str:
    commit = stored_config(source).get("_commit_hash")
    if not commit:
        raise TeacherError(f"cannot tell the commit of hub model {source.model!r}; name a revision")
    return str(commit)
