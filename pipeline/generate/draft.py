"""One response in the making: its prompt, its finished blocks, and the block being decided.

Blocks are counted from the text's first token, as in training: a prompt that ends amid a block
shares it with the first response tokens. The last block is whole too; what lies in it beyond the
response's limit stays masked. Axes: S position, N position still masked in the current block.
"""

from dataclasses import dataclass, field

import numpy as np

from pipeline.diffusion.rng import Stream, uniforms_for
from pipeline.generate.choose import choose, tokens_per_step
from pipeline.generate.decoding import Decoding
from storage_schemas.examples import Bools, Ints


@dataclass(slots=True, kw_only=True)
class Draft:
    """The state of one row; it knows nothing of the other rows.

    name: what keys its random numbers, beside the seed. place: which prompt of the call it is.
    """

    place: int
    name: str
    decoding: Decoding
    ids_S: Ints
    is_masked_S: Bools  # positions whose token is not decided yet, up to the limit
    num_prompt: int
    block: int
    num_steps: int = 0
    _shares: list[int] = field(default_factory=list[int])

    @classmethod
    def begin(
        cls, prompt_ids: Ints, decoding: Decoding, *, place: int, name: str, mask_id: int
    ) -> "Draft":
        """Prompt, then masks up to whole blocks."""
        size, num_prompt = decoding.block_size, len(prompt_ids)
        end = num_prompt + decoding.max_new_tokens
        ids_S = np.full(-(-end // size) * size, mask_id, dtype=np.int32)
        ids_S[:num_prompt] = prompt_ids
        place_S = np.arange(len(ids_S))
        draft = cls(
            place=place,
            name=name,
            decoding=decoding,
            ids_S=ids_S,
            is_masked_S=(place_S >= num_prompt) & (place_S < end),
            num_prompt=num_prompt,
            block=num_prompt // size,
        )
        draft._share_out()
        return draft

    @property
    def start(self) -> int:
        """The first position of the current block."""
        return self.block * self.decoding.block_size

    @property
    def stop(self) -> int:
        """One past its last position."""
        return self.start + self.decoding.block_size

    @property
    def is_block_done(self) -> bool:
        """Whether every token of it is decided."""
        return not self.is_masked_S[self.start : self.stop].any()

    def response(self, eos_id: int) -> tuple[Ints, bool]:
        """The tokens decided in finished blocks, up to and with the first EOS; if there is one."""
        stop = self.stop if self.is_block_done else self.start
        stop = min(stop, self.num_prompt + self.decoding.max_new_tokens)
        ids = self.ids_S[self.num_prompt : stop]
        ends = np.flatnonzero(ids == eos_id)
        return (ids[: ends[0] + 1], True) if len(ends) else (ids, False)

    def masked_positions(self) -> Ints:
        """Positions of the current block that are still masked."""
        found = np.flatnonzero(self.is_masked_S[self.start : self.stop])
        return (found + self.start).astype(np.int32)

    def uniforms(self, stream: Stream) -> np.ndarray:
        """This step's random numbers, one a position that is still masked.

        Each position of the block has its own, so none depends on how many are masked.
        """
        decoding = self.decoding
        numbers = uniforms_for(
            decoding.seed, self.name, self.num_steps, stream, decoding.block_size
        )
        return numbers[self.masked_positions() - self.start]

    def take(self, ids_N: Ints, confidence_N: np.ndarray) -> None:
        """One step: of these tokens, one a masked position, the chosen ones stay."""
        is_random = self.decoding.remasking == "random"
        is_taken_N = choose(
            self.uniforms("remask") if is_random else confidence_N,
            confidence_N,
            quota=self._shares.pop(0),
            threshold=self.decoding.threshold,
        )
        taken = self.masked_positions()[is_taken_N]
        self.ids_S[taken] = ids_N[is_taken_N]
        self.is_masked_S[taken] = False
        self.num_steps += 1

    def next_block(self) -> None:
        """Go on with the block after this one."""
        self.block += 1
        self._share_out()

    @property
    def is_full(self) -> bool:
        """Whether nothing is left to decide."""
        return not self.is_masked_S.any()

    def _share_out(self) -> None:
        shares = tokens_per_step(
            len(self.masked_positions()),
            block_size=self.decoding.block_size,
            steps_per_block=self.decoding.steps_per_block,
        )
        self._shares = list(shares)
