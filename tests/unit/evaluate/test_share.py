"""Two processes score held-out text as one does, in as many calls each."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline.evaluate.masks import draw_held_out
from pipeline.evaluate.share import Share
from pipeline.records.source import index_records, read_part

# Record by record, so that there are batches to share; three of them, so that one rank fills up.
SCORE = """
import sys
from pathlib import Path
import numpy as np, torch
from pipeline.evaluate.heldout import evaluate_held_out
from pipeline.evaluate.masks import HeldOut
from pipeline.evaluate.share import Share
from transformers import AutoModelForCausalLM

folder, rank, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
if count > 1:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
    )
model = AutoModelForCausalLM.from_pretrained(sys.argv[4], dtype=torch.float32)
calls = []

def call(work):
    calls.append(work)
    return work(model)

def total(values):
    if count > 1:
        torch.distributed.all_reduce(values)
    return values

scores = evaluate_held_out(
    model, HeldOut.load(Path(folder, "masks.parquet")), mask_id=4095, block_size=16, batch_tokens=1,
    call=call, share=Share(rank=rank, count=count, total=total),
)
np.savez(
    f"{folder}/{rank}-of-{count}.npz", calls=len(calls), nll=scores.content.nll_RL,
    correct=scores.target.num_correct_RL, masked=scores.target.num_masked_RL,
)
if count > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_item_is_counted_once_and_all_ranks_have_as_many(count):
    items = list("abcde")
    shares = [list(Share(rank=rank, count=count).of(items)) for rank in range(count)]
    assert sorted(x for share in shares for x, is_counted in share if is_counted) == items
    assert {len(share) for share in shares} == {-(-5 // count)}


def test_nothing_to_share_is_nothing_for_each():
    assert list(Share(rank=1, count=2).of([])) == []


def test_two_processes_have_the_scores_of_one_bit_for_bit(tiny, tmp_path):
    records = tiny.recipe("a", tmp_path).records
    index = index_records(records, 1000)
    held_out, _ = draw_held_out(
        read_part(records, index, 0),
        tiny.tokenizers["student"],
        length=96,
        block_size=16,
        levels=(0.3, 0.6, 0.9),
        max_records=3,
    )
    held_out.save(tmp_path / "masks.parquet")
    model = str(tiny.folder / "student")
    processes = [
        subprocess.Popen([sys.executable, "-c", SCORE, str(tmp_path), rank, count, model])
        for rank, count in (("0", "1"), ("0", "2"), ("1", "2"))
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    one, *two = (np.load(tmp_path / f"{name}.npz") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert one["calls"] == 9
    for each in two:
        assert each["calls"] == 5  # 9 batches: one rank scores the last of them for company
        for name in ("nll", "correct", "masked"):
            np.testing.assert_array_equal(each[name], one[name])
    assert one["masked"].sum() > 0
