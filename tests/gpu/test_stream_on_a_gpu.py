"""What only a GPU can show of the training stream: batches that come in pinned memory."""

from pathlib import Path

import pytest
import torch

from pipeline.cache.reader import CacheReader
from pipeline.stream.loader import CacheStream
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.batch import Batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def ids_of(batch: Batch) -> dict[str, torch.Tensor]:
    return {"student_ids_BS": torch.from_numpy(batch.student_ids_BS)}


@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_come_in_pinned_memory_with_what_they_hold(tiny, tmp_path, workers):
    recipe = tiny.recipe("a", tmp_path)
    run_teacher_cache(recipe)
    reader = CacheReader.open(Path(recipe.cache.path))
    options = {"batch_size": 4, "seed": 0, "has_tokens": False}
    want = ids_of(next(CacheStream(reader, **options).batches()))
    with CacheStream(reader, **options, workers=workers, pins=True) as stream:
        got = next(stream.batches(then=ids_of))
    assert got["student_ids_BS"].is_pinned()
    torch.testing.assert_close(got["student_ids_BS"], want["student_ids_BS"], rtol=0, atol=0)
