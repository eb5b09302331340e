"""What a teacher must be to belong to its family, and whose code runs when."""

import json
import shutil

import pytest
import torch
from remote import make_model, publish
from transformers import (
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from pipeline.config.models import BlockAttention, FullAttention, TeacherConfig
from pipeline.teacher.checkpoint import load_checkpoint, stored_config
from pipeline.teacher.examples import load_teacher_tokenizer
from pipeline.teacher.fit import check_family, check_mask
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher.weights import weights_digest
from storage_schemas.errors import CheckpointError, RecipeError, TeacherError

FULL, BLOCKS = FullAttention(), BlockAttention(type="block", block_size=8)


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny):
    """family -> a folder with weights, code and a tokenizer."""
    folders = {}
    for family in ("wedlm", "llada2", "dream", "llada"):
        vocab_size = tiny.tokenizers["teacher-a"].vocab_size
        folder = tmp_path_factory.mktemp("published") / family
        folders[family] = publish(make_model(family, vocab_size=vocab_size), family, folder)
        tiny.tokenizers["teacher-a"].hf.save_pretrained(folder)
    return folders


def config_of(model, family, attention=FULL, **settings) -> TeacherConfig:
    trusting = {"trust_remote_code": True, "revision": "this-folder"}
    return TeacherConfig(
        model=str(model), family=family, attention=attention, device="cpu", **(trusting | settings)
    )


@pytest.mark.parametrize(
    ("family", "attention"),
    [("wedlm", BLOCKS), ("llada2", FULL), ("dream", FULL), ("llada", FULL)],
)
def test_a_checkpoint_of_its_family_fits(family, attention, published):
    check_family(config_of(published[family], family, attention))


@pytest.mark.parametrize(
    ("family", "attention", "expected"),
    [
        ("wedlm", FULL, "'block'"),
        ("llada2", BLOCKS, "'full'"),
        ("dream", BLOCKS, "'full'"),
        ("llada", BLOCKS, "'full'"),
    ],
)
def test_an_attention_that_a_family_does_not_have_is_refused(
    family, attention, expected, published
):
    config = config_of(published[family], family, attention)
    with pytest.raises(RecipeError, match=rf"attention\.type of {expected} for family '{family}'"):
        check_family(config)


def test_a_kernel_that_a_familys_code_was_not_tried_with_is_refused(published):
    with pytest.raises(RecipeError, match=r"teacher\.kernel = 'auto' for family 'llada2'"):
        check_family(config_of(published["llada2"], "llada2", kernel="eager"))


@pytest.mark.parametrize("named", ["native", "native_shifted", "llada2", "llada"])
def test_a_checkpoint_of_another_family_is_refused_with_the_right_name(named, published):
    config = config_of(published["dream"], named)
    with pytest.raises(RecipeError, match=r"teacher\.family = 'dream'.*model_type 'Dream'"):
        check_family(config)


def test_an_architecture_that_transformers_does_not_have_is_no_native_teacher(published, tmp_path):
    folder = shutil.copytree(published["llada"], tmp_path / "unknown")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "my-own"}))
    with pytest.raises(RecipeError, match="model_type 'my-own'"):
        check_family(config_of(folder, "native"))


def test_remote_code_that_is_not_asked_for_is_refused_and_not_executed(
    published, tmp_path, remote_code_cache
):
    folder = shutil.copytree(published["llada2"], tmp_path / "watched")
    ran = tmp_path / "ran"
    code = folder / "modeling_llada2_like.py"
    code.write_text(f"{code.read_text()}\nopen({str(ran)!r}, 'w').close()\n")
    shy = config_of(folder, "llada2", trust_remote_code=False)
    with pytest.raises(RecipeError, match=r"trust_remote_code = true for family 'llada2'"):
        check_family(shy)
    with pytest.raises(TeacherError, match="trust_remote_code"):
        TransformersBackend.load(shy, block_size=None)
    weights_digest(shy)
    load_teacher_tokenizer(config_of(folder, "llada2", trust_remote_code=False, mask_id=3))
    asked = config_of(folder, "llada2")
    check_family(asked)  # reads no more than config.json, with the flag too
    assert not ran.exists()
    load_checkpoint(asked, implementation="sdpa")
    assert ran.exists(), "the code would have left its mark"


@pytest.mark.parametrize("revision", ["main", "v1.0", "0" * 39])
def test_code_from_the_hub_runs_at_one_commit_only(revision):
    config = config_of("inclusionAI/LLaDA2.0-mini", "llada2", revision=revision)
    with pytest.raises(
        CheckpointError, match=rf"a commit \(40 hex digits\).*got '{revision}'.*sha"
    ):
        check_family(config)


def test_code_of_another_repository_is_refused_for_nothing_pins_it(published, tmp_path):
    folder = shutil.copytree(published["llada"], tmp_path / "elsewhere")
    fields = json.loads((folder / "config.json").read_text())
    fields["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling_x.Model"
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="someone/else--modeling_x"):
        check_family(config_of(folder, "llada"))


def test_code_for_another_transformers_is_refused_with_both_versions(
    published, tmp_path, remote_code_cache
):
    folder = shutil.copytree(published["llada"], tmp_path / "stale")
    code = folder / "modeling_llada_like.py"
    code.write_text(f"from transformers.utils import gone_since_version_3\n{code.read_text()}")
    wrote = stored_config(config_of(folder, "llada"))["transformers_version"]
    with pytest.raises(TeacherError, match=rf"ImportError.*gone_since.*transformers {wrote}"):
        load_checkpoint(config_of(folder, "llada"), implementation="eager")


def test_one_changed_byte_of_code_that_runs_changes_the_digest(published, tmp_path):
    folder = shutil.copytree(published["llada"], tmp_path / "changed")
    with_code, without = (
        config_of(folder, "llada"),
        config_of(folder, "llada", trust_remote_code=False),
    )
    before = weights_digest(with_code), weights_digest(without)
    code = folder / "tiny_layers.py"
    code.write_text(code.read_text() + "\n# another thought\n")
    assert weights_digest(with_code) != before[0]
    assert weights_digest(without) == before[1]


def mask_checked(config) -> None:
    check_mask(config, load_teacher_tokenizer(config))


def test_a_mask_id_that_the_tokenizer_contradicts_is_refused_with_both(published, tiny):
    own = tiny.tokenizers["teacher-a"].mask_id
    mask_checked(config_of(published["llada"], "llada", mask_id=own))
    with pytest.raises(RecipeError, match=rf"got 7 from teacher\.mask_id and {own} from the token"):
        mask_checked(config_of(published["llada"], "llada", mask_id=7))
    with pytest.raises(RecipeError, match=rf"got 126336 from family 'llada' and {own} from"):
        mask_checked(config_of(published["llada"], "llada"))


@pytest.fixture
def without_mask_token(published, tmp_path):
    """A folder whose tokenizer knows no mask, and whose config.json may."""

    def make(family, **fields):
        folder = shutil.copytree(published[family], tmp_path / "without")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.mask_token = None
        tokenizer.save_pretrained(folder)
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stored | fields))
        return folder

    return make


def test_a_mask_id_that_config_json_contradicts_is_refused(without_mask_token):
    folder = without_mask_token("llada", mask_token_id=5)
    mask_checked(config_of(folder, "llada", mask_id=5))
    with pytest.raises(RecipeError, match=r"got 6 from teacher\.mask_id and 5 from config\.json"):
        mask_checked(config_of(folder, "llada", mask_id=6))


def test_a_mask_id_beyond_the_embeddings_is_refused(without_mask_token, tiny):
    folder = without_mask_token("llada")
    vocab_size = tiny.tokenizers["teacher-a"].vocab_size
    with pytest.raises(RecipeError, match=rf"a mask id below {vocab_size}.*got 126336"):
        mask_checked(config_of(folder, "llada"))


def _tiny_shape(vocab_size):
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 1.0,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**_tiny_shape(128), head_dim=16)),
        lambda: CohereForCausalLM(CohereConfig(**_tiny_shape(128), logit_scale=0.25)),
    ],
    ids=["capped", "scaled"],
)
def test_an_architecture_that_caps_or_scales_its_logits_is_refused_with_figures(make, dtype):
    torch.manual_seed(0)
    with pytest.raises(TeacherError, match=r"within [\d.e-]+, got a difference of [\d.]+.*scales"):
        TransformersBackend(make().to(dtype), block_size=None, batch_tokens=100)
