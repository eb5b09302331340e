"""The start-up check can fail: each fault that it is there for, made on purpose."""

from contextlib import nullcontext

import pytest
from served import Served

from pipeline.teacher import vllm_engine
from pipeline.teacher.vllm_backend import VllmBackend
from pipeline.teacher.vllm_plugin import pooler
from storage_schemas.errors import TeacherError

STOCK = "vllm.v1.core.sched.scheduler.Scheduler"


@pytest.fixture
def run_with(monkeypatch):
    """`run_with(model=Class, scheduler_cls=Class)`: the next engine runs these instead of ours."""
    from vllm import ModelRegistry

    plain = vllm_engine.engine_options

    def use(*, model=None, **changes):
        def faulty(config, *, block_size):
            options = plain(config, block_size=block_size) | changes
            if model is not None:
                ModelRegistry.register_model(model.__name__, model)
                options["hf_overrides"]["architectures"] = [model.__name__]
            return options

        monkeypatch.setattr(vllm_engine, "engine_options", faulty)

    return use


def load(served: Served, checkpoints) -> VllmBackend:
    return VllmBackend.load(served.config(checkpoints(served.model)), block_size=served.block_size)


def test_a_mixture_of_experts_that_ignores_is_causal_is_found_out(run_with, checkpoints):
    from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

    class Stock(Qwen3MoeForCausalLM):
        is_pooling_model = True

        def __init__(self, *, vllm_config, prefix=""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.pooler = pooler.RowPooler(self.compute_logits, self.config.vocab_size)

    run_with(model=Stock)
    with pytest.raises(TeacherError, match="the first row does not see the last token"):
        load(Served(model="moe"), checkpoints)


def test_our_own_classes_refuse_to_be_built_with_causal_attention(monkeypatch, checkpoints):
    from pipeline.teacher.vllm_plugin import models

    monkeypatch.setattr(models, "built_with", lambda module, attention: nullcontext())
    with pytest.raises(TeacherError, match="2 layers attend as Attention"):
        load(Served(model="moe"), checkpoints)


def test_a_class_with_other_logits_is_found_out_by_the_comparison(run_with, checkpoints):
    from pipeline.teacher.vllm_plugin.models import TidecacheQwen3Full

    class Louder(TidecacheQwen3Full):
        def compute_logits(self, hidden_states):
            return super().compute_logits(hidden_states) * 1.01

    run_with(model=Louder)
    with pytest.raises(TeacherError, match=r"rows to be transformers'.* got \d+ of \d+ rows"):
        load(Served(model="qwen3"), checkpoints)


def test_a_scheduler_without_the_cap_is_stopped_in_the_worker(run_with, checkpoints):
    run_with(scheduler_cls=STOCK)
    with pytest.raises(TeacherError, match="a step of 24 tokens joins blocks"):
        load(Served(model="qwen3", block_size=8), checkpoints)


def test_and_were_it_not_the_leak_test_of_a_lone_sequence_would_find_it(
    run_with, monkeypatch, checkpoints
):
    run_with(scheduler_cls=STOCK)
    monkeypatch.setattr(pooler.BlockRowPooler, "check_chunk", lambda self, start, end: None)
    with pytest.raises(TeacherError, match="a sequence alone: block 0 sees block 1"):
        load(Served(model="qwen3", block_size=8), checkpoints)
