"""Every error that a user's data, recipe or disk can cause; each is also a builtin exception.

A message says what was expected, what was got, where, and what to do.
"""


class TidecacheError(Exception):
    """Base of all errors that tidecache raises on purpose."""


class RecipeError(TidecacheError, ValueError):
    """A recipe, or a setting in it, cannot be used."""


class RecordError(TidecacheError, ValueError):
    """One record cannot be used; a run counts it, reports it and goes on.

    `reason` is a short stable word for counting (`empty_response`, `broken_json`, ...).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(TidecacheError, ValueError):
    """A model's checkpoint would run code that nothing pins, or be read by unpickling."""


class TokenizerError(TidecacheError, ValueError):
    """A tokenizer or its chat template cannot serve (lossy, no mask token, not prefix-stable)."""


class TeacherError(TidecacheError, RuntimeError):
    """The teacher cannot be loaded, or does not attend as its family should."""


class LostWorkersError(TidecacheError, RuntimeError):
    """Shards were given up, each after several worker processes had died of it."""


class LoaderError(TidecacheError, RuntimeError):
    """A process that reads a cache ahead of training ended before its time."""


class LostProcessError(TidecacheError, RuntimeError):
    """A training process crashed, was killed or did not stop when asked to."""


class CacheMissingError(TidecacheError, FileNotFoundError):
    """There is no cache, or no committed shard, where one was expected."""


class CacheIdentityError(TidecacheError, ValueError):
    """The cache at this address was made from other inputs than the recipe names."""


class CacheCorruptError(TidecacheError, ValueError):
    """A committed file is missing, has another size or content, or contradicts the manifest."""


class CacheWriteError(TidecacheError, OSError):
    """The cache folder cannot be written."""


class StoreConnectionError(TidecacheError, ConnectionError):
    """An object store does not answer, or no longer does; what is committed is kept."""
