"""GPUs are claimed by locks: never twice at once, and free again when their process has ended."""

import multiprocessing

import pytest

import flows.gpus
from flows.gpus import claim_gpus, visible_gpus
from storage_schemas.errors import RecipeError


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    """Claims belong to a process; here, to a test."""
    monkeypatch.setattr(flows.gpus, "_HELD", [])


def _claim_elsewhere(folder, count, claimed, may_end):
    environment = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    claimed.put(claim_gpus("auto", count, environment=environment, folder=folder))
    may_end.wait()


def test_each_worker_has_gpus_of_its_own_and_a_dead_ones_are_free(tmp_path):
    context = multiprocessing.get_context("spawn")
    claimed, may_end = context.Queue(), context.Event()
    other = context.Process(target=_claim_elsewhere, args=(tmp_path, 2, claimed, may_end))
    other.start()
    assert claimed.get() == ("0", "1")
    environment = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    with pytest.raises(RecipeError, match="expected 3 free GPUs for this worker, got 2 of the 4"):
        claim_gpus("cuda", 3, environment=environment, folder=tmp_path)
    other.kill()  # the locks end with it, whatever it left undone
    other.join()
    assert claim_gpus("cuda", 3, environment=environment, folder=tmp_path) == ("0", "1", "2")
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert claim_gpus("cuda", 3, environment=environment, folder=tmp_path) == ("0", "1", "2")


def test_a_host_without_gpus_serves_auto_and_cpu_alone(tmp_path):
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    assert claim_gpus("auto", 1, environment=environment, folder=tmp_path) == ()
    with pytest.raises(RecipeError, match=r"expected a GPU for teacher\.device = 'cuda'"):
        claim_gpus("cuda", 1, environment=environment, folder=tmp_path)
    environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert claim_gpus("cpu", 1, environment=environment, folder=tmp_path) == ()
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_the_gpus_that_the_environment_names_are_the_visible_ones():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-abc"}) == ["3", "GPU-abc"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
