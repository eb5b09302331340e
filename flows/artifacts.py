"""A run's artifacts in Prefect's UI, published by a thread of their own.

The run hands on what it has to show and goes on: a server that is slow, or gone, neither slows nor
fails it.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.progress import Logger
from pipeline.storage.address import resolved_address

_ANSWER_SECONDS = 10.0
_LAST_WORD_SECONDS = 15  # how long a run that has ended waits for its last pages


def artifact_key(what: str, address: str) -> str:
    """A key that stays the same for one cache or output: its runs are each other's history."""
    place = resolved_address(address)
    name = re.sub("[^a-z0-9]+", "-", place.rpartition("/")[2].lower()).strip("-")
    return "-".join(filter(None, [what, name, hashlib.sha256(place.encode()).hexdigest()[:8]]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One artifact of a run: how it is drawn now, and how often at most it is published.

    `draw` is called in the publishing thread; without anything to show it gives None.
    """

    draw: Callable[[], Artifact | None]
    seconds: float


@contextmanager
def publishing(pages: Sequence[Page], logger: Logger) -> Generator[None]:
    """Keeps the pages published while the context lasts, and once more at its end, however it ends.

    To be entered in a flow run, which the artifacts then belong to.
    """
    is_over = threading.Event()
    publisher = _Publisher(pages, flow_run.id, logger)
    context = copy_context()  # with the settings that say where the server is
    thread = threading.Thread(target=context.run, args=[publisher.run, is_over], daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_LAST_WORD_SECONDS)


@dataclass(slots=True, kw_only=True)
class _Published:
    page: Page
    id: UUID | None = None
    due: float = 0.0
    shown: dict[str, Any] | None = None


class _Publisher:
    """Has a connection of its own, which waits for no server that is busy or gone."""

    def __init__(self, pages: Sequence[Page], flow_run_id: str | None, logger: Logger) -> None:
        self._pages = [_Published(page=page) for page in pages]
        self._flow_run_id = flow_run_id
        self._logger = logger
        self._has_warned = False

    def run(self, is_over: threading.Event) -> None:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
        ):
            while not is_over.wait(min(page.page.seconds for page in self._pages)):
                due = [page for page in self._pages if page.due <= time.monotonic()]
                self._publish_all(due, client)
            self._publish_all(self._pages, client)

    def _publish_all(self, pages: Sequence[_Published], client: SyncPrefectClient) -> None:
        for page in pages:
            page.due = time.monotonic() + page.page.seconds
            try:
                self._publish(page, client)
            except Exception as error:  # whatever it is, it is no affair of the run's
                if not self._has_warned:
                    line = "the run goes on, but Prefect's UI may not show where it stands: %s: %s"
                    self._logger.warning(line, type(error).__name__, error)
                self._has_warned = True

    def _publish(self, page: _Published, client: SyncPrefectClient) -> None:
        """Creates the artifact, then changes it; one that says what it said is left alone."""
        artifact = page.page.draw()
        if artifact is None:
            return
        says = {"data": artifact.format(_sync=True), "description": artifact.description}
        if page.shown == says:
            return
        if page.id is None:
            names = {"type": artifact.type, "key": artifact.key, "flow_run_id": self._flow_run_id}
            page.id = client.create_artifact(ArtifactCreate(**names, **says)).id
        else:
            client.update_artifact(page.id, ArtifactUpdate(**says))
        page.shown = says
