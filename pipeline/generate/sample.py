"""Responses of a block-diffusion student: the loop over blocks and unmasking steps.

Axes: N masked position (flattened over the batch), H hidden size.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.generate.decoding import Decoding
from pipeline.generate.draft import Draft
from pipeline.generate.draw import draw_tokens
from pipeline.generate.read import CachedReader, PlainReader, Reader
from pipeline.student.forward import head
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Ints

_ROWS = 256  # positions whose logits exist at one time

Progress = Callable[[int, Ints], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One prompt's response: its tokens up to and with the first EOS, never a mask.

    num_steps: its unmasking steps. is_finished: an EOS came before the limit.
    """

    ids: Ints
    num_steps: int
    is_finished: bool


@torch.no_grad()  # no inference_mode: what it makes cannot be gathered into sharded weights
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Ints],
    decoding: Decoding,
    *,
    mask_id: int,
    eos_id: int,
    uses_cache: bool = True,
    names: Sequence[str] | None = None,
    on_progress: Progress | None = None,
) -> list[Generation]:
    """A response to each prompt, in their order, all decoded as one batch.

    Prompts may have any lengths. A step draws a token for every masked position of each current
    block, and some stay (`choose`). A response ends with the block that holds an EOS, or at its
    limit, and its row then leaves the batch. Its tokens depend on the seed, its prompt and its name
    alone; without `names` a prompt is known by its tokens, and equal ones by their order.

    `uses_cache=False` reads every text anew in each step: the same tokens, slowly. `on_progress` is
    told the prompt's place and its response so far after each block.
    """
    if not prompts:
        return []
    drafts = _begin(model, prompts, decoding, mask_id, names)
    size = decoding.block_size
    was_training = model.training
    model.eval()
    reader: Reader = CachedReader(model, size, drafts) if uses_cache else PlainReader(model, size)
    done: dict[int, Generation] = {}
    while drafts:
        current, hidden_NH = reader.read(drafts)
        _step(model, current, hidden_NH, decoding, mask_id)
        for draft in current:
            if draft.is_block_done:
                _end_block(draft, eos_id, done, on_progress)
        rows = [row for row, draft in enumerate(drafts) if draft.place not in done]
        if len(rows) < len(drafts):
            drafts = [drafts[row] for row in rows]
            reader.keep(rows)
    model.train(was_training)
    return [done[place] for place in range(len(prompts))]


def longest_prompt(model: PreTrainedModel, decoding: Decoding) -> int | None:
    """How many tokens a prompt may have, so that the model has positions for its response too."""
    limit = cast("int | None", getattr(model.config, "max_position_embeddings", None))
    return None if limit is None else limit - decoding.max_new_tokens


def _begin(
    model: PreTrainedModel,
    prompts: Sequence[Ints],
    decoding: Decoding,
    mask_id: int,
    names: Sequence[str] | None,
) -> list[Draft]:
    limit, longest = longest_prompt(model, decoding), max(map(len, prompts))
    if limit is not None and longest > limit:
        raise RecipeError(
            f"expected prompts of at most {limit} tokens, as many as the model's positions leave "
            f"with max_new_tokens = {decoding.max_new_tokens}, got one of {longest}; shorten it, "
            f"or ask for fewer tokens"
        )
    names = _names(prompts) if names is None else names
    assert len(names) == len(prompts), "one name a prompt"
    return [
        Draft.begin(prompt, decoding, place=place, name=name, mask_id=mask_id)
        for place, (prompt, name) in enumerate(zip(prompts, names, strict=True))
    ]


def _names(prompts: Sequence[Ints]) -> list[str]:
    """A digest of each prompt, and how many equal ones stand before it."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for prompt in prompts:
        digest = blake2b(prompt.astype("<i4").tobytes(), digest_size=16).hexdigest()
        names.append(f"{digest}.{seen[digest]}")
        seen[digest] += 1
    return names


def _step(
    model: PreTrainedModel,
    drafts: Sequence[Draft],
    hidden_NH: Float[Tensor, "N H"],
    decoding: Decoding,
    mask_id: int,
) -> None:
    """One unmasking step of each draft."""
    if not drafts:
        return
    counts = [len(draft.masked_positions()) for draft in drafts]
    uniform_N = np.zeros(sum(counts))
    if decoding.temperature > 0:
        uniform_N = np.concatenate([draft.uniforms("token") for draft in drafts])
    ids_N, confidence_N = _drawn(model, hidden_NH, uniform_N, decoding, mask_id)
    edges = np.cumsum(counts)[:-1]
    for draft, ids, confidence in zip(
        drafts, np.split(ids_N, edges), np.split(confidence_N, edges), strict=True
    ):
        draft.take(ids, confidence)


def _drawn(
    model: PreTrainedModel,
    hidden_NH: Float[Tensor, "N H"],
    uniform_N: Float[np.ndarray, " N"],
    decoding: Decoding,
    mask_id: int,
) -> tuple[Ints, Float[np.ndarray, " N"]]:
    uniforms = torch.from_numpy(uniform_N).to(hidden_NH.device)
    drawn = [
        draw_tokens(
            head(model)(hidden_NH[start : start + _ROWS]),
            uniforms[start : start + _ROWS],
            temperature=decoding.temperature,
            mask_id=mask_id,
        )
        for start in range(0, len(uniform_N), _ROWS)
    ]
    ids_N, confidence_N = (torch.cat(parts).cpu().numpy() for parts in zip(*drawn, strict=True))
    return ids_N.astype(np.int32), confidence_N


def _end_block(
    draft: Draft, eos_id: int, done: dict[int, Generation], on_progress: Progress | None
) -> None:
    """Tell of a finished block; go on with the next one, or end the response."""
    ids, has_eos = draft.response(eos_id)
    if on_progress is not None:
        on_progress(draft.place, ids)
    if has_eos or draft.is_full:
        done[draft.place] = Generation(ids=ids, num_steps=draft.num_steps, is_finished=has_eos)
    else:
        draft.next_block()
