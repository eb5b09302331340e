"""A teacher whose weights two workers share: each has half of the vocabulary's head."""

import multiprocessing

import numpy as np
import torch
from served import Served
from teacher_backend import TOLERANCE, keep_tokens, kept_of

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
        assert len(multiprocessing.active_children()) == (2 if tensor_parallel == 2 else 0)
        backend.close()
        assert multiprocessing.active_children() == []
    one, two = kept
    assert one["ids_MK"].keys() == two["ids_MK"].keys()
    for place in one["ids_MK"]:
        for name in ("gold_logp_M", "logits_MK", "logsumexp_MJ"):
            np.testing.assert_allclose(two[name][place], one[name][place], **TOLERANCE)
        assert np.abs(two["sketch_MR"][place] - one["sketch_MR"][place]).max() <= 1
    largest = max(int(ids.max()) for ids in two["ids_MK"].values())
    assert largest >= torch.tensor(601 // 2).item() + 1, "the second worker's half is seen"
