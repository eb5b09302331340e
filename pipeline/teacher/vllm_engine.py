"""One vLLM engine: how it is set up on each device, asked for rows, and ended.

Imported only where a recipe's teacher may run on vLLM, which is an extra.
"""
# pyright: basic, reportMissingImports=false
# (vLLM is an extra, and the checks run without it)

import gc
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.models import TeacherConfig
from pipeline.teacher.checkpoint import stored_config
from pipeline.teacher.device import batch_tokens, torch_device
from pipeline.teacher.families import family_named
from pipeline.teacher.keep import Keep
from pipeline.teacher.vllm_plugin import SERVED, architecture, why_not_usable
from pipeline.teacher.vllm_plugin.keep_file import write_keep
from storage_schemas.errors import TeacherError

_LOG = logging.getLogger(__name__)
_TASK = "token_classify"
_MOST_SEQUENCES = 256  # at once
_CHECKED_BLOCKS = 3  # the start-up check asks about three blocks, whatever the recipe's length
_KV_BYTES = {"full": 2**26, "block": 2**30}  # on CPUs; VLLM_CPU_KVCACHE_SPACE (GiB) overrides it
_GPU_MEMORY = 0.85  # of the whole; a calibration's head and rows need some of the rest
_IN_PROCESSES = "VLLM_ENABLE_V1_MULTIPROCESSING"
# What the user's environment may say otherwise: no reports to vLLM's makers; as many threads as
# OMP_NUM_THREADS says, on any core.
_DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_KV_BLOCK = 32  # tokens; what every attention kernel takes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRequest:
    """One sequence for the engine, the positions whose rows answer, and the tokens they predict.

    reads_prefix: computed prefixes of other requests may be used; then only rows behind the prefix
    may be asked for.
    """

    ids: NDArray[np.int32]
    positions: Sequence[int]
    gold: Sequence[int]
    reads_prefix: bool = True


def why_not_served(config: TeacherConfig) -> str | None:
    """Why vLLM cannot run this teacher here, or None; looks at the recipe and the checkpoint."""
    reason = why_not_usable()
    if reason is not None:
        return reason
    if not family_named(config.family).is_native:
        return f"no model class of vLLM serves the family {config.family!r}"
    fields = stored_config(config)
    found = _architecture(fields)
    if found not in SERVED:
        return f"expected one of {', '.join(SERVED)}, got {found}"
    if fields.get("use_sliding_window"):
        return "its layers see a sliding window only, where a teacher sees the whole sequence"
    return _why_not_here(config, fields)


def _architecture(fields: dict[str, Any]) -> str:
    return (fields.get("architectures") or ["no architecture"])[0]


def _why_not_here(config: TeacherConfig, fields: dict[str, Any]) -> str | None:
    """What this build of vLLM, and the device, have to say."""
    from vllm.platforms import current_platform

    device = torch_device(config.device)
    if device.type != current_platform.device_type:
        return f"this vLLM runs on {current_platform.device_type}, the recipe asks for {device}"
    if device.index:
        return f"vLLM takes the first visible GPU, not {device}; set CUDA_VISIBLE_DEVICES"
    if device.type == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        size = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
        sizes = CPUAttentionBackend.get_supported_head_sizes()
        if size not in sizes:
            return f"expected attention heads of {sizes} on a CPU, got {size}"
    return None


class Engine:
    """A running vLLM that answers `RowRequest`s; `close` ends it.

    On a CPU it runs in this process (with tensor parallelism its workers do not), and so starts in
    seconds; else, or if another is here, in a process of its own.
    """

    _is_one_here: ClassVar[bool] = False  # vLLM's state of a process serves one engine

    def __init__(self, config: TeacherConfig, *, block_size: int | None) -> None:
        self._is_here = torch_device(config.device).type == "cpu" and not Engine._is_one_here
        self._kept: Keep | None = None
        with _untouched_process(is_engine_here=self._is_here):
            from vllm import LLM

            try:
                options = engine_options(config, block_size=block_size)
                if self._is_here:
                    _register_here(*options["hf_overrides"]["architectures"])
                self._llm: Any = LLM(**options)
            except Exception as error:  # of any kind: from configuration to memory
                raise TeacherError(
                    f"expected vLLM to start with teacher {config.model!r} on {config.device}, "
                    f"got: {error}"
                ) from error
        Engine._is_one_here |= self._is_here
        settings = self._llm.llm_engine.vllm_config
        self.vocab_size = int(settings.model_config.get_vocab_size())
        self.hidden_size = int(settings.model_config.get_hidden_size())
        cache = settings.cache_config
        self.kv_block = int(cache.block_size)  # tokens
        self.kv_tokens = int(cache.num_gpu_blocks or 0) * self.kv_block  # that the cache holds

    def keep(self, keep: Keep) -> None:
        """From now on, keep this of each row; it is sent once, for a basis may be large."""
        if self._kept is not None and self._kept == keep:
            return
        with tempfile.TemporaryDirectory(prefix="tidecache-") as folder:
            self._llm.collective_rpc("keep_of_rows", args=write_keep(keep, Path(folder)))
        self._kept = keep

    def forget_prefixes(self) -> None:
        """Computed prefixes are computed again when they are next asked for."""
        assert self._llm.reset_prefix_cache(), "a request is still running"

    def ask(self, requests: Sequence[RowRequest]) -> list[NDArray[np.float32]]:
        """What is kept of each request's rows, as packed by `wire`, in the requests' order."""
        from vllm import PoolingParams

        if not requests:
            return []
        prompts = [{"prompt_token_ids": one.ids.tolist()} for one in requests]
        rows = [
            PoolingParams(
                task=_TASK,
                skip_reading_prefix_cache=not one.reads_prefix,
                extra_kwargs={"positions": list(one.positions), "gold": list(one.gold)},
            )
            for one in requests
        ]
        try:
            outputs = self._llm.encode(prompts, rows, pooling_task=_TASK, use_tqdm=False)
        except Exception as error:  # of any kind: it may come from a worker, or be its death
            raise TeacherError(
                f"expected vLLM to answer {len(requests)} requests of up to "
                f"{max(len(one.ids) for one in requests)} tokens, got: {error}"
            ) from error
        tables = [output.outputs.data.numpy() for output in outputs]
        for one, table in zip(requests, tables, strict=True):
            assert len(table) == len(one.positions), "a row of a request is missing, or came twice"
        return tables

    def close(self) -> None:
        """Ends the engine and its workers; a second call does nothing."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        if self._is_here:
            Engine._is_one_here = False
        gc.collect()


def _register_here(architecture: str) -> None:
    """Give vLLM the class itself: by its name alone it starts a process just to look at it."""
    from vllm import ModelRegistry

    from pipeline.teacher.vllm_plugin import models

    ours = getattr(models, architecture, None)
    if ours is not None:
        ModelRegistry.register_model(architecture, ours)


def engine_options(config: TeacherConfig, *, block_size: int | None) -> dict[str, Any]:
    """The arguments of vLLM's `LLM` for a recipe's teacher."""
    from vllm.config import PoolerConfig

    device = torch_device(config.device)
    is_cpu, tokens = device.type == "cpu", batch_tokens(config, device)
    served = _architecture(stored_config(config))
    is_blockwise = block_size is not None
    length = max(config.length, _CHECKED_BLOCKS * (block_size or 1))
    options: dict[str, Any] = {
        "model": config.model,
        "load_format": "safetensors",
        "revision": config.revision,
        "dtype": config.dtype,
        "runner": "pooling",
        "convert": "none",
        "model_impl": "vllm",
        "skip_tokenizer_init": True,
        "pooler_config": PoolerConfig(task=_TASK),
        "hf_overrides": {
            "architectures": [architecture(served, is_blockwise=is_blockwise)],
            "is_causal": is_blockwise,  # false: vLLM's own classes then see the whole sequence
            "head_dtype": "model",  # logits as transformers computes them
            "tidecache_block_size": block_size,
        },
        "worker_extension_cls": "pipeline.teacher.vllm_plugin.worker.KeepExtension",
        "max_model_len": length,
        "tensor_parallel_size": config.tensor_parallel,
        "enforce_eager": is_cpu,
        "disable_log_stats": True,
    }
    if is_cpu:
        options["kv_cache_memory_bytes"] = _KV_BYTES["block" if is_blockwise else "full"]
    else:
        options["gpu_memory_utilization"] = _GPU_MEMORY
    if block_size is None:
        budget = max(tokens, length)  # a sequence is never cut
        return options | {
            "max_num_batched_tokens": budget,
            "max_num_seqs": min(_MOST_SEQUENCES, budget),
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
        }
    sequences = max(1, min(_MOST_SEQUENCES, tokens // block_size))
    return options | {
        "scheduler_cls": "pipeline.teacher.vllm_plugin.scheduler.BlockScheduler",
        "async_scheduling": False,
        "long_prefill_token_threshold": block_size,
        "max_num_batched_tokens": sequences * block_size,
        "max_num_seqs": sequences,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "block_size": math.lcm(block_size, _KV_BLOCK),  # a cached prefix is whole diffusion blocks
    }


@contextmanager
def _untouched_process(*, is_engine_here: bool) -> Iterator[None]:
    """What vLLM's start changes in this process, and nothing needs later, is put back."""
    before = {name: os.environ.get(name) for name in (_IN_PROCESSES, *_DEFAULTS)}
    os.environ[_IN_PROCESSES] = "0" if is_engine_here else "1"
    os.environ.update({name: os.environ.get(name, value) for name, value in _DEFAULTS.items()})
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
