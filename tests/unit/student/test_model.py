"""Which models can be a student."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from pipeline.config.models import StudentConfig
from pipeline.diffusion.flex import FLEX
from pipeline.student.forward import attention_implementation
from pipeline.student.model import check_block_attention, load_student
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError


def test_a_student_is_loaded_in_float32_whatever_its_file_holds(tiny, tmp_path):
    tiny.model("student").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_student(StudentConfig(model=str(tmp_path))).dtype == torch.float32


@pytest.mark.parametrize(("kernel", "implementation"), [("sdpa", "sdpa"), ("flex", FLEX)])
def test_the_kernel_is_the_models_attention(tiny, kernel, implementation):
    model = load_student(StudentConfig(model=str(tiny.folder / "student")), kernel=kernel)
    assert attention_implementation(model) == implementation


def test_an_a2d_checkpoint_is_the_plain_architecture_with_its_weights(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder / "student", tmp_path / "a2d")
    fields = json.loads((folder / "config.json").read_text())
    named = {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(fields | named))
    model, plain = load_student(StudentConfig(model=str(folder))), tiny.model("student")
    assert type(model) is Qwen3ForCausalLM
    ids_BS = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids_BS).logits, plain(ids_BS).logits)
    ChatTokenizer.load(str(folder))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["model_type"], saved["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])


@pytest.mark.parametrize("attention", ["sdpa", "eager", FLEX])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_model_that_reads_the_mask_passes_and_stays_in_training(tiny, attention):
    model = tiny.model("student", attention=attention).train()
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
