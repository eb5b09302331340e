"""Credentials that stand where they must not: what is written in a recipe is copied to many places.

Recipes go into caches, checkpoints, logs and the orchestrator's data base. Addresses are therefore
plain, and credentials come from the environment, as every store's own tools read them.
"""

import re
from typing import Any, cast

from storage_schemas.errors import RecipeError

_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^/?#\s]*)@")
# in these the part before @ is a container or a repository
_CONTAINERS, _REPOSITORIES = ("abfs", "abfss", "wasb", "wasbs"), ("github",)
_QUERY = re.compile(
    r"://\S*[?&]([\w-]*(?:signature|credential|token|secret|password)|sig|key|api_?key|"
    r"awsaccesskeyid|googleaccessid)=",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}|"
    r"\bgithub_pat_\w{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def refuse_credentials(text: str, where: str) -> None:
    """Raise where a text holds credentials; the error names the place alone, never the text."""
    if (kind := _kind_of(text)) is not None:
        raise RecipeError(
            f"{where}: expected an address without credentials, got one with {kind} (not repeated "
            f"here); put credentials into the environment (AWS_ACCESS_KEY_ID, "
            f"GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY, HF_TOKEN, ...) or into a "
            f"profile, and regard this one as known to others if it was ever shared"
        )


def refuse_credentials_in(fields: object, where: str) -> None:
    """The same for every text in nested tables and lists, keys included; names its dotted keys."""
    if isinstance(fields, str):
        refuse_credentials(fields, where)
    elif isinstance(fields, dict):
        for key, value in cast("dict[Any, object]", fields).items():
            refuse_credentials(str(key), where)
            refuse_credentials_in(value, f"{where}.{key}")
    elif isinstance(fields, list | tuple):
        for i, value in enumerate(cast("list[object]", fields)):
            refuse_credentials_in(value, f"{where}[{i}]")


def _kind_of(text: str) -> str | None:
    for match in _USER.finditer(text):
        scheme, user = match["scheme"].lower(), match["user"]
        is_name = scheme in _REPOSITORIES or (scheme in _CONTAINERS and ":" not in user)
        if not is_name:
            return "a user's name or a password before '@'"
    if match := _QUERY.search(text):
        return f"{match[1]}= in its query"
    return "what looks like an access token or a key" if _TOKEN.search(text) else None
