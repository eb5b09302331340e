"""A training state comes back from its file as it was, and no foreign file is one."""

import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train.random_state import random_state, set_random_state
from pipeline.train.state_file import read_state, write_state
from storage_schemas.errors import CheckpointError

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner)
    ),
    max_leaves=12,
)


@given(state=STATES)
def test_plain_values_come_back_as_what_they_were(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    write_state(path, state)
    assert repr(read_state(path)) == repr(state)


def test_an_optimizer_goes_on_from_its_file_as_if_it_had_not_stopped(tmp_path):
    def optimizer_of(weight: torch.Tensor) -> torch.optim.Optimizer:
        return torch.optim.AdamW([weight], lr=1e-3)

    def step(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> None:
        weight.grad = weight.detach() ** 2
        optimizer.step()

    whole, cut = (torch.arange(6.0).requires_grad_() for _ in range(2))
    of_whole, of_cut = optimizer_of(whole), optimizer_of(cut)
    step(of_whole, whole)
    step(of_cut, cut)
    write_state(tmp_path / "state", of_cut.state_dict())
    resumed = optimizer_of(cut)
    resumed.load_state_dict(read_state(tmp_path / "state"))
    step(of_whole, whole)
    step(resumed, cut)
    assert torch.equal(whole, cut)


def test_random_numbers_go_on_where_they_were(tmp_path):
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    write_state(tmp_path / "random", random_state())
    want = draw()
    draw()
    set_random_state(read_state(tmp_path / "random"))
    assert draw() == want


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04.", b"\x00" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"]
)
def test_what_is_no_state_is_refused(data, tmp_path):
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(CheckpointError, match="expected a training state that tidecache wrote"):
        read_state(tmp_path / "state")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="got no such file; remove its folder"):
        read_state(tmp_path / "state")


def test_nothing_of_torchs_unpickler_is_needed(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(sys.modules["pickle"], "Unpickler", refuse)
    write_state(tmp_path / "state", {"a": torch.ones(2)})
    assert torch.equal(read_state(tmp_path / "state")["a"], torch.ones(2))
