"""Prefill in chunks of exactly one diffusion block, whoever else is in the queue."""
# pyright: basic, reportMissingImports=false
# (vLLM is an extra, and the checks run without it)

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class BlockScheduler(Scheduler):
    """vLLM's scheduler whose cap on a chunk holds for a request that is alone, too.

    The stock one then lets the request use the step's whole budget: its blocks would all see each
    other. Here a step for one request has a budget of one block.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        settings = self.scheduler_config
        self._block = self.vllm_config.model_config.hf_config.tidecache_block_size
        self._budget = self.max_num_scheduled_tokens
        assert settings.long_prefill_token_threshold == self._block, "a chunk is a block"
        assert not settings.long_prefill_token_threshold_adaptive, "a chunk is never longer"
        assert self._budget >= settings.max_num_seqs * self._block, "a cut would split a block"
        assert self.cache_config.block_size % self._block == 0, "a cached prefix is whole blocks"

    def schedule(self, *args: Any, **options: Any) -> Any:
        """One step."""
        is_alone = sum(self.get_request_counts()) == 1
        self.max_num_scheduled_tokens = self._block if is_alone else self._budget
        return super().schedule(*args, **options)
