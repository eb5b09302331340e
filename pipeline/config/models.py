"""Which student and which teacher, and how each reads its sequence (method, sections 0 and 7)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import StrictModel

Count = Annotated[int, Field(gt=0)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Dtype = Literal["float32", "bfloat16", "float16"]


class ModelSource(StrictModel):
    """A transformers checkpoint: a folder, or a hub name at a revision.

    Remote code runs only where `trust_remote_code` is set AND a revision pins what is run.
    Where the tokenizer has no mask token, mask_token names one that stands for a masked one, or
    mask_id its id, which only the model needs to know.
    """

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False
    mask_token: str | None = None
    mask_id: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "ModelSource":
        if self.trust_remote_code and self.revision is None:
            raise ValueError(
                f"trust_remote_code = true needs a pinned revision (a commit hash), got none; ask "
                f'for the newest with python -c "from huggingface_hub import model_info; '
                f"print(model_info('{self.model}').sha)\", and read that commit's *.py before you "
                f"set revision to it"
            )
        return self

    @model_validator(mode="after")
    def _one_mask(self) -> "ModelSource":
        if self.mask_token is not None and self.mask_id is not None:
            raise ValueError("expected mask_token or mask_id, got both")
        return self


class StudentConfig(ModelSource):
    """The student: sequence length and diffusion block in tokens; the length is whole blocks."""

    length: Count = 512
    block_size: Count = 32

    @model_validator(mode="after")
    def _whole_blocks(self) -> "StudentConfig":
        if self.length % self.block_size:
            raise ValueError(
                f"expected a length of whole blocks of {self.block_size}, got {self.length}"
            )
        return self


class FullAttention(StrictModel):
    """Every token of the noised sequence sees every other (LLaDA2)."""

    type: Literal["full"] = "full"


class BlockAttention(StrictModel):
    """The block-diffusion mask over [x_0, x_t] (WeDLM)."""

    type: Literal["block"]
    block_size: Count = 32


FamilyName = Literal["native", "native_shifted", "llada", "llada2", "wedlm", "dream"]


class TeacherConfig(ModelSource):
    """The teacher, and what runs it.

    A batch holds at most `batch_tokens` tokens, padding included: 16384 on a GPU and 2048 on a CPU
    where the recipe names none. backend `auto` is vLLM where it is installed, serves the family and
    passes its check. kernel chooses transformers' attention: `auto` by the device and the mask.
    tensor_parallel: GPUs that share one teacher, in vLLM.
    """

    family: FamilyName = "native"
    attention: Annotated[FullAttention | BlockAttention, Field(discriminator="type")]
    length: Count = 1024
    dtype: Dtype = "bfloat16"
    device: Device = "auto"
    batch_tokens: Count | None = None
    backend: Literal["auto", "transformers", "vllm"] = "auto"
    kernel: Literal["auto", "sdpa", "packed", "flash", "flex", "eager"] = "auto"
    tensor_parallel: Count = 1

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "TeacherConfig":
        if self.backend == "vllm" and self.kernel != "auto":
            raise ValueError("kernel has no effect with backend = 'vllm': it chooses its own")
        if self.backend != "vllm" and self.tensor_parallel > 1:
            raise ValueError(
                f"tensor_parallel = {self.tensor_parallel} needs backend = 'vllm', "
                f"got {self.backend!r}"
            )
        return self

    @model_validator(mode="after")
    def _whole_blocks(self) -> "TeacherConfig":
        if isinstance(self.attention, BlockAttention) and self.length % self.attention.block_size:
            raise ValueError(
                f"expected a length of whole blocks of {self.attention.block_size}, "
                f"got {self.length}"
            )
        return self
