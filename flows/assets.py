"""The cache and the student as Prefect's assets: events that tell which was made from which.

An open-source server keeps them as events (`prefect.asset.*`); Prefect Cloud draws the graph.
"""

import hashlib
import re
from typing import Any

from prefect.assets import Asset, AssetProperties, materialize
from prefect.cache_policies import NO_CACHE

from pipeline.storage.address import is_remote, resolved_address

_NOT_IN_A_KEY = re.compile(r"[\s\0#?&%\"'<>\[\]{}|\\^`]")
_MOST_CHARACTERS = 512


def asset_of(address: str) -> Asset:
    """The asset at an address of a cache or an output; equal addresses, equal assets."""
    place = resolved_address(address)
    return Asset(key=_key(place), properties=AssetProperties(name=place))


def record_cache(address: str, metadata: dict[str, Any]) -> None:
    """Tells that the cache is complete, with what is in it; to be called in a flow run."""
    asset = asset_of(address)

    @materialize(asset, name="cache", cache_policy=NO_CACHE, persist_result=False)
    def cache() -> None:
        asset.add_metadata(metadata)

    cache()


def _key(place: str) -> str:
    """The place as a URI; where Prefect takes no such URI, one of its own that is as unique."""
    uri = place if is_remote(place) else f"file://{place}"
    key = _NOT_IN_A_KEY.sub("-", uri)
    if key == uri and len(uri) <= _MOST_CHARACTERS:
        return uri
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return f"{key[: _MOST_CHARACTERS - len(digest) - 1]}-{digest}"
