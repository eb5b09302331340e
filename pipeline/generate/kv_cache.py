"""Keys and values of clean blocks, one row a text, each row filled as far as its own text is.

A pass writes its tokens' keys and values at their own positions, and the next pass over the same
block writes over them: so a noised block leaves no trace once its clean tokens have been read.
Axes: A row, N token of a pass, K position in the cache, H head, D head size.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

States = Float[Tensor, "A H N D"]


class BlockCache(Cache):
    """What transformers' attention layers hand their new keys and values to.

    The model must be given positions and a ready-made mask: this cache has no length to count from.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(layers=[])
        self._capacity = capacity
        self._keys: list[Float[Tensor, "A H K D"]] = []
        self._values: list[Float[Tensor, "A H K D"]] = []
        self._position_AN = torch.zeros(0, 0, dtype=torch.long)
        self._row_A1 = torch.zeros(0, 1, dtype=torch.long)
        self._num_seen = 0

    def aim(self, position_AN: Int[Tensor, "A N"], num_seen: int) -> None:
        """The next pass writes at these positions, and attends among the first `num_seen`."""
        self._position_AN = position_AN
        self._row_A1 = torch.arange(len(position_AN), device=position_AN.device)[:, None]
        self._num_seen = num_seen

    def keep_rows(self, row_A: Int[Tensor, " A"]) -> None:
        """Forget all other rows."""
        self._keys = [keys.index_select(0, row_A) for keys in self._keys]
        self._values = [values.index_select(0, row_A) for values in self._values]

    def update(
        self, key_states: States, value_states: States, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Float[Tensor, "A H K D"], Float[Tensor, "A H K D"]]:
        """Write one layer's new states; gives back all that may be attended to."""
        if layer_idx == len(self._keys):
            num_rows, num_heads, _, _ = key_states.shape
            for kept, new in ((self._keys, key_states), (self._values, value_states)):
                # zeros: what no query sees still meets a weight of 0 in a product
                shape = (num_rows, num_heads, self._capacity, new.shape[-1])
                kept.append(new.new_zeros(shape))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._row_A1, :, self._position_AN] = key_states.transpose(1, 2)
        values[self._row_A1, :, self._position_AN] = value_states.transpose(1, 2)
        return keys[:, :, : self._num_seen], values[:, :, : self._num_seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None: positions are given."""
        del layer_idx
        return 0
