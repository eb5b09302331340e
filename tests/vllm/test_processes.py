"""Teachers in processes of their own: two that share the weights, and one that stands beside."""

import multiprocessing

import numpy as np
from served import VOCAB, Served
from teacher_backend import TOLERANCE, keep_tokens, kept_of

from pipeline.teacher.keep import KeepChunks
from pipeline.teacher.vllm_backend import VllmBackend


def test_two_workers_keep_what_one_process_keeps(checkpoints):
    served = Served(model="moe", block_size=16)
    folder, passes = checkpoints("moe"), served.passes()
    kept = []
    for tensor_parallel in (1, 2):
        config = served.config(folder, tensor_parallel=tensor_parallel)
        backend = VllmBackend.load(config, block_size=served.block_size)
        keep = keep_tokens(backend, 590)
        names = ("gold_logp_M", "ids_MK", "logits_MK", "logsumexp_MJ", "sketch_MR")
        kept.append({name: kept_of(backend, passes, keep, name) for name in names})
        workers = 0 if tensor_parallel == 1 else tensor_parallel
        assert len(multiprocessing.active_children()) == workers
        backend.close()
        assert multiprocessing.active_children() == []
    one, two = kept
    assert one["ids_MK"].keys() == two["ids_MK"].keys()
    for place in one["ids_MK"]:
        for name in ("gold_logp_M", "logits_MK", "logsumexp_MJ"):
            np.testing.assert_allclose(two[name][place], one[name][place], **TOLERANCE)
        assert np.abs(two["sketch_MR"][place] - one["sketch_MR"][place]).max() <= 1
    largest = max(int(ids.max()) for ids in two["ids_MK"].values())
    assert largest > VOCAB // 2, "the second worker's half is seen"


def test_a_second_engine_beside_one_in_this_process_gets_a_process_of_its_own(checkpoints):
    served = Served(model="qwen3")
    config = served.config(checkpoints("qwen3"))
    here, elsewhere = (VllmBackend.load(config, block_size=None) for _ in range(2))
    assert len(multiprocessing.active_children()) == 1
    got, want = (
        kept_of(one, served.passes(), KeepChunks(), "gold_logp_M") for one in (elsewhere, here)
    )
    for place, logp in want.items():
        np.testing.assert_allclose(got[place], logp, **TOLERANCE)
    elsewhere.close()
    here.close()
    assert multiprocessing.active_children() == []
