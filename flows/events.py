"""The event that joins the two stages: this cache, with these shards, is committed."""

from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.storage.address import resolved_address

COMMITTED = "teacher-cache.committed"
ADDRESS_LABEL = "tidecache.cache.address"


def cache_address(recipe: Recipe) -> str:
    """The one name of a recipe's cache, whatever folder a command runs in."""
    return resolved_address(recipe.cache.path)


def committed_event(*, address: str, digest: str, num_views: int, recipe: str) -> dict[str, Any]:
    """The event's fields, as `prefect.events.emit_event` takes them."""
    return {
        "event": COMMITTED,
        "resource": {
            "prefect.resource.id": f"tidecache.cache.{digest}",
            "prefect.resource.name": address,
            ADDRESS_LABEL: address,
        },
        "payload": {
            "address": address,
            "digest": digest,
            "num_views": num_views,
            "recipe": recipe,
        },
    }


def match_of(address: str) -> dict[str, str | list[str]]:
    """The resources that a trigger for this one cache answers to.

    The digest is known only once teacher and tokenizers are loaded; the address is known at once,
    and never holds a cache of another digest (the writer refuses).
    """
    return {"prefect.resource.id": "tidecache.cache.*", ADDRESS_LABEL: address}
