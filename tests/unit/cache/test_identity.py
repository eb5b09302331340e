import pytest
from cache_content import LAYOUT, VOCABULARIES, identity_of
from pydantic import ValidationError

from pipeline.cache.writer import CacheWriter
from storage_schemas.errors import CacheIdentityError
from storage_schemas.identity import CacheIdentity, KeptIdentity, NoiseIdentity
from storage_schemas.manifest import Counts, FileEntry, Layout, LedgerEntry


def test_equal_inputs_have_one_digest_and_any_other_input_another():
    identity = identity_of()
    assert identity.digest == identity_of().digest
    assert len(identity.digest) == 16
    others = [
        identity_of(seed=2),
        identity_of(top_k=5),
        identity_of(logits_dtype="float16"),
        identity_of(pipeline="cross_tokenizer"),
        identity_of(noise=NoiseIdentity(seed=1, eps=1e-3, demo_ratio=None)),
    ]
    assert len({identity.digest, *(other.digest for other in others)}) == 6


def test_the_digest_is_a_recorded_value_on_every_machine():
    assert identity_of().digest == "21a4bac459d3ca02"


def test_an_identity_survives_json():
    identity = identity_of()
    assert CacheIdentity.model_validate_json(identity.model_dump_json()) == identity


def test_differences_name_the_dotted_field_and_both_values():
    other = identity_of(seed=2, noise=NoiseIdentity(seed=2, eps=1e-3, demo_ratio=None))
    assert identity_of().differences(other) == [
        "noise.seed: the cache has 1, the recipe asks for 2",
        "noise.demo_ratio: the cache has 0.5, the recipe asks for none",
    ]
    assert identity_of().differences(identity_of()) == []


def test_a_cache_of_another_identity_or_layout_is_refused_with_the_fields_named(tmp_path):
    CacheWriter.open(tmp_path, identity_of(), LAYOUT, VOCABULARIES).close()
    with pytest.raises(CacheIdentityError, match=r"noise\.seed: the cache has 1, the recipe asks"):
        CacheWriter.open(tmp_path, identity_of(seed=2), LAYOUT, VOCABULARIES)
    with pytest.raises(CacheIdentityError, match=r"layout\.records_per_part: the cache has 8"):
        CacheWriter.open(tmp_path, identity_of(), Layout(records_per_part=9), VOCABULARIES)


@pytest.mark.parametrize(
    ("top_k", "temperatures"), [(4, ()), (4, (1.0, 1.0)), (4, (0.0,)), (301, (1.0,)), (-1, (1.0,))]
)
def test_what_cannot_be_kept_is_refused(top_k, temperatures):
    with pytest.raises(ValidationError):
        KeptIdentity(top_k=top_k, logits_dtype="float32", temperatures=temperatures, vocab_size=300)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "shards/../../x", "shards//x", "./x", "", "a\\..\\b"]
)
def test_a_path_that_leaves_the_cache_is_refused(path):
    with pytest.raises(ValidationError, match="inside the cache folder"):
        FileEntry(path=path, size=1, xxh3_128="0" * 32)


def test_a_ledger_entry_lists_files_of_its_own_shard_only():
    counts = dict.fromkeys(Counts.model_fields.keys() - {"skips"}, 0)
    fields = {
        "shard": "p00000-v0000-0001",
        "part": 0,
        "view_start": 0,
        "view_stop": 1,
        "folder": "shards/p00000-v0000-0001",
        "counts": counts | {"skips": {}},
        "files": [{"path": "shards/p00001-v0000-0001/x", "size": 1, "xxh3_128": "0" * 32}],
    }
    with pytest.raises(ValidationError, match="expected files under shards/p00000-v0000-0001/"):
        LedgerEntry.model_validate(fields)
    with pytest.raises(ValidationError, match="expected shard p00001-v0000-0001"):
        LedgerEntry.model_validate(fields | {"part": 1})
    for folder in ("shards/p00001-v0000-0001", "shards/p00000-v0000-0001/a/b", "ledger"):
        with pytest.raises(ValidationError, match="expected the folder"):
            LedgerEntry.model_validate(fields | {"folder": folder})


def test_independent_times_are_another_cache_and_stratified_ones_keep_the_old_digest():
    stratified = NoiseIdentity(seed=1, eps=1e-3, demo_ratio=None)
    independent = NoiseIdentity(seed=1, eps=1e-3, demo_ratio=None, times="independent")
    assert stratified.model_dump() == {"seed": 1, "eps": 1e-3, "demo_ratio": None}
    assert NoiseIdentity.model_validate(independent.model_dump()) == independent
    assert identity_of(noise=stratified).digest != identity_of(noise=independent).digest
