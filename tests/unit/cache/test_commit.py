"""Commits that are killed, raced or refused."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cache_content import LAYOUT, VOCABULARIES, content_of, identity_of, same

from pipeline.cache.local_store import LocalStore
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter
from storage_schemas.errors import CacheCorruptError, CacheWriteError

IDENTITY = identity_of(top_k=2)
STEPS = ("rename", "link", "mkdir", "unlink", "rmdir", "open")  # an fsync changes nothing seen


def contents(*, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [content_of(rng, IDENTITY, part=part, num_examples=2) for part in range(2)]


def run_stage(path: Path, parts: int = 2) -> None:
    with CacheWriter.open(path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        for content in contents()[:parts]:
            if writer.missing_views(content.part, 2):
                writer.commit(content)


def tree(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


class Killed(BaseException):
    """Stands for a SIGKILL: from then on no step of the process happens any more."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Lets `step` steps on the disk happen, then none; returns the log of the steps."""
    log: list[str] = []

    def counted(name, real):
        def call(*args, **kwargs):
            if len(log) >= step:
                raise Killed
            log.append(name)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return log


def test_a_run_killed_at_any_step_and_resumed_equals_an_undisturbed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # this is about kills, not power cuts
    run_stage(tmp_path / "whole", parts=1)
    expected = tree(tmp_path / "whole")
    with monkeypatch.context() as patch:
        log = kill_at(patch, 10**9)
        run_stage(tmp_path / "counted", parts=1)
    assert tree(tmp_path / "counted") == expected
    assert set(log) == set(STEPS)
    for step in range(len(log)):
        path = tmp_path / f"killed-{step}"
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                run_stage(path, parts=1)
        run_stage(path, parts=1)
        # the scratch folder of the "dead" may stay: its lock can live on in this process
        got = {name: data for name, data in tree(path).items() if not name.startswith("tmp/")}
        assert got == {name: data for name, data in expected.items() if name != "tmp/lock"}, step


def test_files_are_on_disk_before_they_get_their_name_and_the_ledger_comes_last(
    tmp_path, monkeypatch
):
    log: list[tuple[str, str]] = []
    with CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        fsync, rename, link = os.fsync, os.rename, os.link

        def noted_fsync(descriptor):
            log.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
            fsync(descriptor)

        def noted_rename(source, target):
            log.append(("rename", str(target)))
            rename(source, target)

        def noted_link(source, target):
            log.append(("link", str(target)))
            link(source, target)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "rename", noted_rename)
        monkeypatch.setattr(os, "link", noted_link)
        entry = writer.commit(contents()[0])
    renamed = log.index(("rename", str(tmp_path / "shards" / entry.shard)))
    synced = [path for step, path in log[:renamed] if step == "fsync"]
    assert all(
        any(path.endswith(f"/files/{entry.inner_path(file)}") for path in synced)
        for file in entry.files
    )
    assert any(path.endswith("/files/tokens.zarr/ids_low/c/0") for path in synced)  # folders too
    assert log[renamed + 1 :] == [
        ("fsync", str(tmp_path / "shards")),
        ("link", str(tmp_path / "ledger" / f"{entry.shard}.json")),
        ("fsync", str(tmp_path / "ledger")),
    ]


def test_a_run_killed_with_sigkill_and_resumed_equals_an_undisturbed_run(tmp_path):
    run_stage(tmp_path / "whole")
    program = (
        "import os, signal, sys; from pathlib import Path; import test_commit as t\n"
        "real, count = os.rename, [0]\n"
        "def rename(*args):\n"
        "    real(*args)\n"
        "    count[0] += 1\n"
        "    if count[0] == 3: os.kill(os.getpid(), signal.SIGKILL)\n"  # shard there, ledger not
        "os.rename = rename\n"
        "t.run_stage(Path(sys.argv[1]))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    path = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [entry.shard for entry in CacheReader.open(path).entries] == ["p00000-v0000-0002"]
    assert (path / "shards" / "p00001-v0000-0002").exists()
    assert list((path / "tmp").glob("writer-*"))
    run_stage(path)
    assert tree(path) == tree(tmp_path / "whole")
    assert not list((path / "tmp").glob("writer-*"))


def test_the_second_of_two_writers_gets_the_first_ones_entry_and_drops_its_own(tmp_path):
    first, second = contents(seed=0)[0], contents(seed=1)[0]
    with (
        CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as one,
        CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as other,
    ):
        entry = one.commit(first)
        before = tree(tmp_path)
        assert other.commit(second) == entry
        assert tree(tmp_path) == before
    reader = CacheReader.open(tmp_path)
    assert same(reader.read_shard(reader.entries[0]), first)


def test_of_writers_at_the_same_time_one_wins_and_all_agree_on_it(tmp_path):
    candidates = [contents(seed=seed)[0] for seed in range(6)]

    def run(content):
        with CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
            return writer.commit(content)

    with ThreadPoolExecutor(6) as pool:
        entries = list(pool.map(run, candidates))
    assert all(entry == entries[0] for entry in entries)
    reader = CacheReader.open(tmp_path)
    read = reader.read_shard(reader.entries[0])
    assert sum(same(read, content) for content in candidates) == 1
    assert not list((tmp_path / "tmp").glob("writer-*"))


def test_views_that_overlap_a_committed_shard_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    with CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        writer.commit(content_of(rng, IDENTITY, view_start=0, view_stop=2))
        with pytest.raises(CacheWriteError, match="views 0 to 1 of part 0 committed by another"):
            writer.commit(content_of(rng, IDENTITY, view_start=1, view_stop=3))
        assert writer.missing_views(0, 4) == [range(2, 4)]


def test_more_views_extend_a_cache(tmp_path):
    rng = np.random.default_rng(0)
    with CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        assert writer.missing_views(0, 2) == [range(2)]
        assert writer.committed(0) == frozenset()
        writer.commit(content_of(rng, IDENTITY, view_start=0, view_stop=2))
        writer.commit(content_of(rng, IDENTITY, view_start=5, view_stop=6))
        assert writer.missing_views(0, 2) == []
        assert writer.missing_views(0, 4) == [range(2, 4)]
        assert writer.missing_views(0, 9) == [range(2, 5), range(6, 9)]
        assert writer.missing_views(1, 9) == [range(9)]
        assert writer.committed(0) == {0, 1, 5}
        assert CacheReader.open(tmp_path).num_views == 2
        writer.commit(content_of(rng, IDENTITY, view_start=2, view_stop=5))
        assert writer.missing_views(0, 9) == [range(6, 9)]
    assert CacheReader.open(tmp_path).num_views == 6


def test_a_folder_that_cannot_be_written_is_refused_with_advice(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CacheWriteError, match="expected a writable folder"):
        CacheWriter.open(tmp_path / "file" / "cache", IDENTITY, LAYOUT, VOCABULARIES)


def test_a_full_disk_leaves_no_trace_and_a_later_commit_succeeds(tmp_path, monkeypatch):
    with CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        before = tree(tmp_path)

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CacheWriteError, match="No space left on device"):
                writer.commit(contents()[0])
        assert tree(tmp_path) == before
        assert writer.commit(contents()[0]).shard == "p00000-v0000-0002"


def test_a_disk_that_fills_up_at_any_moment_is_a_clear_error_and_a_later_run_completes(
    tmp_path, monkeypatch
):
    run_stage(tmp_path / "whole", parts=1)
    expected = tree(tmp_path / "whole")
    fsync, calls = os.fsync, []

    def full_from(number: int):
        calls.clear()

        def call(descriptor):
            calls.append(descriptor)
            if len(calls) > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        return call

    number = 0
    while True:
        path = tmp_path / f"full-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_from(number))
            try:
                run_stage(path, parts=1)
            except CacheWriteError as error:
                assert "No space left on device; free some room" in str(error)  # noqa: PT017
            else:
                break
        assert not list(path.glob("tmp/writer-*"))
        run_stage(path, parts=1)
        assert tree(path) == expected
        number += 1
    assert number > 20


def test_files_that_cannot_be_written_in_full_are_never_committed(tmp_path):
    """A limit on the size of files stands for a full disk: the operating system cuts the write."""
    run_stage(tmp_path / "whole")
    sizes = sorted(len(data) for name, data in tree(tmp_path / "whole").items() if "shards" in name)
    program = (
        "import resource, sys; from pathlib import Path; import test_commit as t\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({sizes[-1] - 1},) * 2)\n"
        "t.run_stage(Path(sys.argv[1]))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    command = [sys.executable, "-c", program, tmp_path / "cut"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "CacheWriteError" in done.stderr
    assert "File too large" in done.stderr
    run_stage(tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_cache_on_a_read_only_file_system_can_be_read_and_not_written(tmp_path, monkeypatch):
    run_stage(tmp_path / "cache", parts=1)
    real = os.open

    def refusing(path, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **options)

    before = tree(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        with pytest.raises(CacheWriteError, match=r"writable folder .*Read-only file system"):
            run_stage(tmp_path / "cache")
        with pytest.raises(CacheWriteError, match="Read-only file system"):
            LocalStore(tmp_path / "cache").replace("recipe.json", b"")
        reader = CacheReader.open(tmp_path / "cache")
        assert same(reader.read_shard(reader.entries[0]), contents()[0])
    assert tree(tmp_path / "cache") == before
    run_stage(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_is_not_ones_own_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CacheWriteError, match="Permission denied"):
            run_stage(tmp_path / "cache")
    finally:
        tmp_path.chmod(0o755)


def test_shards_without_their_manifest_are_not_written_over(tmp_path):
    run_stage(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CacheCorruptError, match=r"expected manifest\.json beside its shards"):
        run_stage(tmp_path)
    assert not list((tmp_path / "tmp").glob("writer-*"))


def test_a_committed_shard_whose_file_is_gone_does_not_count_as_finished(tmp_path):
    run_stage(tmp_path)
    whole = tree(tmp_path)
    (tmp_path / "shards/p00001-v0000-0002/tokens.zarr/ids_low/c/0/0").unlink()
    with pytest.raises(CacheCorruptError, match=r"remove ledger/p00001-v0000-0002\.json"):
        run_stage(tmp_path)
    (tmp_path / "ledger/p00001-v0000-0002.json").unlink()  # as the message says
    run_stage(tmp_path)
    assert tree(tmp_path) == whole
