"""Loading the student, and checking that it can be one."""

from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.config.models import StudentConfig
from pipeline.diffusion.leak import block_attention_faults
from pipeline.storage.model_files import check_code, check_weights
from pipeline.student.forward import masked_hidden
from pipeline.student.kernels import Kernel, implementation_of
from storage_schemas.errors import RecipeError

# Checkpoints of autoregressive architectures retrained for diffusion: the weights are the plain
# architecture's, and only the mask, which is ours to give, differs.
_PLAIN = {"a2d-qwen3": "qwen3", "a2d-qwen2": "qwen2", "a2d-llama": "llama"}


def load_student(config: StudentConfig, *, kernel: Kernel = "sdpa") -> PreTrainedModel:
    """The student in float32, the dtype of its weights in training; autocast does the rest.

    SDPA runs anywhere; flex attention trains on GPUs alone (`choose_kernel`).

    An `a2d-*` checkpoint is loaded, and later saved, as the plain architecture that it holds.
    """
    check_code(config)
    check_weights(config)
    options: dict[str, Any] = {
        "trust_remote_code": config.trust_remote_code,
        "dtype": torch.float32,
        "attn_implementation": implementation_of(kernel),
        "use_safetensors": True,
    }
    if config.revision is not None:
        options["revision"] = config.revision
    try:
        fields, _ = cast("Any", PretrainedConfig).get_config_dict(
            config.model, revision=config.revision
        )
        if plain := _PLAIN.get(fields.pop("model_type", "")):
            options["config"] = cast("Any", AutoConfig).for_model(plain, **fields)
        return cast("Any", AutoModelForCausalLM).from_pretrained(config.model, **options)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"expected a student that transformers can load at {config.model!r}, got: {error}"
        ) from error


def forget_activations(model: PreTrainedModel) -> None:
    """From now on each layer's are made again in the backward pass: less memory, a third more time.

    Losses and gradients stay what they are.
    """
    methods = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # new, old name
    enable = next(getattr(model, name) for name in methods if hasattr(model, name))
    enable({"use_reentrant": False})


@torch.no_grad()
def check_block_attention(model: PreTrainedModel, *, mask_id: int, block_size: int) -> None:
    """Raise unless the student attends block-wise: later clean blocks must stay unseen."""
    vocab_size = cast("Any", model.get_input_embeddings()).weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids_S = torch.randint(2, min(1000, vocab_size), (3 * block_size,), generator=generator)

    def forward(ids_BS: torch.Tensor) -> torch.Tensor:
        everywhere_BS = torch.ones_like(ids_BS, dtype=torch.bool)
        hidden_NH = masked_hidden(
            model, ids_BS, everywhere_BS, mask_id=mask_id, block_size=block_size
        )
        return hidden_NH[None]

    was_training = model.training
    model.eval()
    faults = block_attention_faults(forward, ids_S.to(model.device), block_size)
    model.train(was_training)
    if faults:
        raise RecipeError(
            f"the student does not attend block-wise: {'; '.join(faults)}. Its architecture "
            f"({type(model).__name__}) ignores or misreads the attention mask, so it cannot be a "
            f"block-diffusion student"
        )
