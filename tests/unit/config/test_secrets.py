"""What counts as a credential in a recipe, and what must not."""

import pytest

from pipeline.config.secrets import refuse_credentials, refuse_credentials_in
from storage_schemas.errors import RecipeError


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:secret@bucket/folder",
        "s3://key@bucket/folder",
        "zip://a.jsonl::https://user:token@host/a.zip",
        "abfs://container:key@account.dfs.core.windows.net/folder",
        "https://host/a.jsonl?X-Amz-Signature=abc",
        "https://host/a.jsonl?X-Goog-Credential=abc",
        "az://container/a.jsonl?sv=2024&sig=abc",
        "https://host/a.jsonl?x=1&access_token=abc",
        "hf_abcdefghijklmnopqrstuvwxyzabcd",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_credentials_are_refused_without_being_repeated(text):
    with pytest.raises(RecipeError, match="expected an address without credentials") as caught:
        refuse_credentials(text, "here")
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder@2/a.jsonl",
        "hf://datasets/owner/name@refs/a.jsonl",
        "github://owner:name@main/a.jsonl",
        "abfs://container@account.dfs.core.windows.net/folder",
        "https://host/a.jsonl?version=2&keys=all",
        "data/me@home/part-?.jsonl",
        "owner/hf_model",
        "tcp://host:8786",
    ],
)
def test_plain_addresses_are_accepted(text):
    refuse_credentials(text, "here")


def test_the_place_is_named_by_its_keys():
    fields = {"records": {"sources": [{"paths": ["a"]}, {"paths": ["a", "s3://k:s@b/c"]}]}}
    with pytest.raises(RecipeError, match=r"recipe\.records\.sources\[1\]\.paths\[1\]: expected"):
        refuse_credentials_in(fields, "recipe")
