"""The head that is read from a checkpoint's files is the one that transformers loads."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config.models import ModelSource
from pipeline.teacher.checkpoint_head import read_head
from storage_schemas.errors import TeacherError


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_it_is_the_models_own_tied_or_not_in_one_file_or_in_many(is_tied, shard_size, tmp_path):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=is_tied,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    is_split = (tmp_path / "model.safetensors.index.json").exists()
    assert is_split == (shard_size == "20KB")
    head = read_head(
        ModelSource(model=str(tmp_path)), dtype=torch.float32, device=torch.device("cpu")
    )
    assert torch.equal(head.weight, model.lm_head.weight)
    assert head.bias is None
    assert not head.weight.requires_grad


def test_a_checkpoint_without_one_is_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"expected a head \(lm_head.weight"):
        read_head(ModelSource(model=str(tmp_path)), dtype=torch.float32, device=torch.device("cpu"))
