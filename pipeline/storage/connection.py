"""Talking to an object store through obstore: connecting, and its errors in this project's terms.

Credentials, endpoint and region are what obstore reads from the environment (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...).
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.storage.address import OBJECT_STORES, is_remote, resolved_address
from storage_schemas.errors import (
    CacheWriteError,
    RecipeError,
    StoreConnectionError,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

# A store that does not answer is given up after seconds, where obstore alone would take minutes.
RETRIES: "RetryConfig" = {
    "max_retries": 3,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=60),
}
# What obstore says, under one class for all, of a request that a store answered with a refusal,
# and of one that could not even be made: trying again would not help.
_REFUSALS = re.compile(r"status code: 4(?!08|29)|builder error|must be specified")
_USED_IN: list[int] = []  # the process that used obstore first


def connect(address: str) -> "ObjectStore":
    """The store, with the URL's path as the prefix of every name; no request is made yet."""
    assert is_remote(address), "an object store's URL"
    require_obstore(address)
    from obstore.store import from_url

    with talking_to(address):
        return from_url(resolved_address(address), retry_config=RETRIES)


def require_obstore(address: str) -> None:
    """Refuses a URL that cannot be reached for want of the package."""
    try:
        import obstore  # pyright: ignore[reportUnusedImport]  # noqa: F401
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{address}: expected obstore to reach it, got no such package; "
            f"pip install 'tidecache[object-store]'"
        ) from error


def register_with_fsspec() -> None:
    """Lets fsspec open the URLs of object stores through obstore, with the same environment."""
    from fsspec.config import conf  # pyright: ignore
    from fsspec.registry import registry  # pyright: ignore
    from obstore.fsspec import register

    for scheme in OBJECT_STORES:
        if scheme not in registry:
            register(scheme)
            conf.setdefault(scheme, {}).setdefault("retry_config", RETRIES)


@contextmanager
def talking_to(address: str, *, is_writing: bool = False) -> Generator[None]:
    """Turns a store's refusals into errors that say what to do.

    What is not there stays a FileNotFoundError; so do the answers to conditional puts.
    """
    from obstore.exceptions import (  # fmt: skip
        AlreadyExistsError,
        BaseError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    _stay_in_one_process()
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        doing, kind = ("write", CacheWriteError) if is_writing else ("read", RecipeError)
        raise kind(
            f"{address}: expected to be allowed to {doing} there, got: {_said(error)}; "
            f"check the credentials in the environment"
        ) from error
    except BaseError as error:
        if _REFUSALS.search(str(error)):
            raise RecipeError(
                f"{address}: expected a store that can be used, got: {_said(error)}; check the "
                f"address, and the store's settings in the environment"
            ) from error
        raise StoreConnectionError(
            f"{address}: expected the object store to answer, got: {_said(error)}; what is "
            f"committed is kept: run again when it can be reached"
        ) from error


def _stay_in_one_process() -> None:
    """obstore's threads do not live on in a fork of a process that has used it: it would hang."""
    if not _USED_IN:
        _USED_IN.append(os.getpid())
    assert _USED_IN[0] == os.getpid(), (
        "an object store was used before this process was forked: start workers with 'spawn'"
    )


def _said(error: BaseException) -> str:
    """What a person needs of it: obstore's own text goes on with its data structures."""
    text = str(error).partition("\n\nDebug source:")[0]
    return " ".join(text.split())
