"""Which models can be a student."""

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from pipeline.config.models import StudentConfig
from pipeline.student.model import check_block_attention, load_student
from storage_schemas.errors import RecipeError


def test_a_student_is_loaded_in_float32_whatever_its_file_holds(tiny, tmp_path):
    tiny.model("student").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_student(StudentConfig(model=str(tmp_path))).dtype == torch.float32


def test_a_model_that_reads_the_mask_passes_and_stays_in_training(tiny):
    model = tiny.model("student").train()
    check_block_attention(model, mask_id=4095, block_size=16)
    assert model.training


def test_a_model_that_ignores_its_mask_is_refused(tiny):
    class Deaf(Qwen3ForCausalLM):
        """Sees everything."""

    model = Deaf(tiny.model("student").config)

    def see_everything(module, args, kwargs):
        return args, kwargs | {"attention_mask": torch.ones_like(kwargs["attention_mask"])}

    model.model.register_forward_pre_hook(see_everything, with_kwargs=True)
    with pytest.raises(RecipeError, match=r"does not attend block-wise.*Deaf"):
        check_block_attention(model, mask_id=4095, block_size=16)


def test_a_folder_without_a_model_is_refused_with_its_name(tmp_path, tiny):
    AutoTokenizer.from_pretrained(tiny.folder / "student").save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=str(tmp_path)):
        load_student(StudentConfig(model=str(tmp_path)))
