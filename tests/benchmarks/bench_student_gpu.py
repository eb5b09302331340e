"""Stage 2 on a GPU: what a step costs with a student of the real shape, in bfloat16.

`make bench-student-gpu`; the last line is JSON. 28 layers, 1024 wide, V = 151,936, random weights;
8 records of 512 tokens a step, a sketch of r = 4096; flex attention. Ratios as in bench_student.py,
of medians of wall seconds with the GPU's queue empty at both ends. tokens_per_s: of the text, each
read twice. share_of_peak: six operations for a parameter of the body and a token
read, and for one of the head and a masked position, over what `--peak-tflops` says of the card.
`--tiny --device cpu` is a trial of the script itself.
"""

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
from student_cache import random_answer, random_pair, student_config
from student_steps import Steps, Views, alternate, cached_arms, operations, random_expand
from transformers import Qwen3Config

from pipeline.stream.collate import View

ROUNDS = 20
H100_BF16_TFLOPS = 989.0  # dense, of the SXM card's data sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A student and its batches."""

    config: Qwen3Config
    rank: int
    batch_size: int
    length: int
    response: int


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peak-tflops", type=float, default=H100_BF16_TFLOPS)
    arguments = parser.parse_args()
    shape = tiny_shape() if arguments.tiny else paper_shape()
    steps = Steps(shape.config, device=arguments.device, is_bf16=True)
    views = random_views(shape, arguments.rounds + 1)
    expand = random_expand(shape.rank, steps.vocab_size, arguments.device)

    def clock() -> float:
        if steps.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds = alternate(cached_arms(steps, views, expand), arguments.rounds, clock)
    needed = 2 * operations(shape.config, views, is_tidal=False)
    figures = {
        "device": torch.cuda.get_device_name() if steps.device.type == "cuda" else "cpu",
        "reverse_calm_over_ce": seconds["reverse_calm"] / seconds["ce"],
        "tidal_over_ce": seconds["tidal"] / seconds["ce"],
        "naive_over_ce": seconds["naive"] / seconds["ce"],
        "tokens_per_s": {n: views.tokens_a_batch / 2 / s for n, s in seconds.items()},
        "share_of_peak": needed / seconds["ce"] / (arguments.peak_tflops * 1e12),
    }
    print(json.dumps(figures))


def paper_shape() -> Shape:
    """Qwen3-0.6B's, with a teacher of 4096."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        tie_word_embeddings=True,
    )
    return Shape(config=config, rank=4096, batch_size=8, length=512, response=256)


def tiny_shape() -> Shape:
    """The other benchmark's student, on short records."""
    return Shape(config=student_config(), rank=64, batch_size=2, length=64, response=32)


def random_views(shape: Shape, count: int) -> Views:
    """Batches of random records."""
    rng = np.random.default_rng(0)
    vocab_size = int(shape.config.vocab_size)

    def view(name: str) -> View:
        pair = random_pair(
            rng, name, length=shape.length, response=shape.response, vocab_size=vocab_size
        )
        noise, targets = random_answer(rng, pair, 0, vocab_size=vocab_size, rank=shape.rank)
        return View(pair=pair, corruption=noise, targets=targets)

    return Views([[view(f"{i}/{b}") for b in range(shape.batch_size)] for i in range(count)])


if __name__ == "__main__":
    main()
