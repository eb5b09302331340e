"""Adapters: what is trained, what is refused, and that merging them changes nothing."""

import sys

import pytest
import torch
from torch.testing import assert_close

from pipeline.config.train import LoraConfig
from pipeline.student.lora import add_adapters, merge_adapters
from storage_schemas.errors import RecipeError


def test_only_adapters_are_trained_and_they_start_as_nothing(tiny):
    ids = torch.arange(2, 30)[None]
    want = tiny.model("student")(ids).logits
    model = add_adapters(tiny.model("student"), LoraConfig(rank=3))
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert len(trained) == 2 * 2 * 7  # A and B, of two layers' seven linear maps
    assert all("lora_" in name for name in trained)
    assert not model.get_output_embeddings().weight.requires_grad
    assert torch.equal(model.eval()(ids).logits, want)


def test_the_merged_student_says_what_the_adapted_one_does(tiny, tmp_path):
    ids = torch.arange(2, 30)[None]
    torch.manual_seed(0)
    model = add_adapters(tiny.model("student"), LoraConfig(rank=3, alpha=6.0)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_B" in name:
                x.normal_(std=0.1)
        want = model(ids).logits
        model.save_pretrained(tmp_path)
        merged = merge_adapters(tiny.model("student"), tmp_path)
        assert (want - tiny.model("student")(ids).logits).abs().max() > 0.1
        assert_close(merged(ids).logits, want, rtol=1e-4, atol=1e-4)
    assert type(merged) is type(tiny.model("student"))


@pytest.mark.parametrize("target", ["lm_head", "w_proj", "embed_tokens"])
def test_a_target_that_is_no_linear_layer_of_the_body_is_refused(target, tiny):
    with pytest.raises(RecipeError, match=rf"down_proj, .*; got {target}; the head is never"):
        add_adapters(tiny.model("student"), LoraConfig(targets=("q_proj", target)))


def test_without_peft_the_error_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not there
    with pytest.raises(RecipeError, match=r"pip install 'tidecache\[lora\]'"):
        add_adapters(tiny.model("student"), LoraConfig())
