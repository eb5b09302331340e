"""What the sampler's cache is worth: tokens a second over the plain loop, for the same tokens.

`make bench-sampler` rewrites results/sampler.json; the last line is JSON. 256 new tokens a prompt,
blocks of 32, greedily, without stopping at EOS, float32, one thread. The loops take turns over the
same prompts, must give the same tokens, and are timed in CPU seconds; a figure is of the median
round. The plain loop reads each text in every step, up to the end of the block being decided, and
has its head at that block's masked positions alone, as the cached loop does.

Students: the bundled one (1.4M parameters, trained) and one of 21M random weights. Tokens a step
are one, four or eight; fewer steps, where a case would take long, make the ratio rather too low,
since reading finished blocks for the cache then weighs more. Prompts are real functions under the
bundled template, those whose length is nearest to 256 tokens. The cases of short prompts have 64,
where a small student's time is mostly that of calling its layers; they show what is left there.
sampler_tokens_per_s_over_plain: the smallest of the other cases' ratios. `--only NAME` measures
one case again, and keeps the file's others.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from pipeline.demo.corpus import ASSETS, documented_functions
from pipeline.generate.decoding import Decoding
from pipeline.generate.sample import Generation, generate
from pipeline.text.render import render_prompt
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.examples import Ints

BLOCK, NEW_TOKENS, NO_EOS = 32, 256, -1
PROMPT, SHORT = 256, 64
SHORT_NAME = "short prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One student, one batch; steps are of a block."""

    student: str
    batch: int
    prompt_tokens: int = PROMPT
    steps: int = BLOCK
    rounds: int

    @property
    def name(self) -> str:
        """What the results call it."""
        ending = f", {SHORT_NAME}" if self.prompt_tokens == SHORT else ""
        return f"{self.student}, batch {self.batch}{ending}"

    def decode(
        self,
        model: PreTrainedModel,
        prompts: list[Ints],
        mask_id: int,
        num_tokens: int,
        *,
        uses_cache: bool,
    ) -> list[Generation]:
        """Responses of so many tokens."""
        decoding = Decoding(max_new_tokens=num_tokens, block_size=BLOCK, steps_per_block=self.steps)
        return generate(
            model, prompts, decoding, mask_id=mask_id, eos_id=NO_EOS, uses_cache=uses_cache
        )


CASES = (
    Case(student="bundled", batch=1, rounds=3),
    Case(student="bundled", batch=8, steps=8, rounds=2),
    Case(student="random", batch=1, steps=8, rounds=2),
    Case(student="random", batch=8, steps=4, rounds=1),
    Case(student="bundled", batch=1, prompt_tokens=SHORT, rounds=3),
    Case(student="bundled", batch=8, steps=8, prompt_tokens=SHORT, rounds=2),
)
_RESULTS = Path(__file__).parent / "results" / "sampler.json"


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    tokenizer = ChatTokenizer.load(str(ASSETS / "student"))
    known = prompts_by_length(tokenizer)
    models = {"bundled": bundled_student(), "random": random_student()}
    cases = stored_cases() if arguments.only else {}
    for case in CASES:
        if arguments.only is None or case.name in arguments.only:
            prompts = nearest(known, case.prompt_tokens, case.batch)
            cases[case.name] = measure(models[case.student], prompts, tokenizer.mask_id, case)
            print(f"{time.monotonic() - began:6.0f} s  {case.name}", file=sys.stderr, flush=True)
            write_results(summary(cases), arguments.threads)  # a long run cut short is not lost
    print(json.dumps(summary(cases)), flush=True)


def summary(cases: dict[str, Any]) -> dict[str, Any]:
    """The figure, and what it is the smallest of."""
    ratios = [one["over_plain"] for name, one in cases.items() if SHORT_NAME not in name]
    return {"sampler_tokens_per_s_over_plain": min(ratios, default=None), "cases": cases}


def stored_cases() -> dict[str, Any]:
    """What the file holds."""
    return json.loads(_RESULTS.read_text(encoding="utf-8"))["figures"]["cases"]


def bundled_student() -> PreTrainedModel:
    """Trained; 1.4M parameters."""
    return AutoModelForCausalLM.from_pretrained(ASSETS / "student", dtype=torch.float32).eval()


def random_student() -> PreTrainedModel:
    """Random weights: speed does not depend on what they are."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    return Qwen3ForCausalLM(config).eval()


def prompts_by_length(tokenizer: ChatTokenizer) -> list[Ints]:
    """The held-out functions' prompts, the shortest first."""
    records = documented_functions("held_out")
    found = [render_prompt(record.messages[:-1], tokenizer) for record in records]
    return sorted(found, key=lambda ids: (len(ids), ids.tolist()))


def nearest(prompts: list[Ints], target: int, count: int) -> list[Ints]:
    """Those whose length is nearest, of different lengths where there are."""
    return sorted(prompts, key=lambda ids: abs(len(ids) - target))[:count]


def measure(
    model: PreTrainedModel, prompts: list[Ints], mask_id: int, case: Case
) -> dict[str, Any]:
    """Tokens a CPU second of both loops, in turns, after a block each to warm up."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(case.rounds + 1):
        num_tokens = NEW_TOKENS if number else BLOCK
        said: list[list[Generation]] = []
        for uses_cache, taken in seconds.items():
            began = time.process_time()
            said.append(case.decode(model, prompts, mask_id, num_tokens, uses_cache=uses_cache))
            if number:
                taken.append(time.process_time() - began)
        for cached, plain in zip(*said, strict=True):
            assert np.array_equal(cached.ids, plain.ids), "the two loops gave different tokens"
            assert len(cached.ids) == num_tokens, "a response ended early"
    cached, plain = (len(prompts) * NEW_TOKENS / statistics.median(s) for s in seconds.values())
    return {
        "cached_tokens_per_cpu_s": round(cached, 1),
        "plain_tokens_per_cpu_s": round(plain, 1),
        "over_plain": round(cached / plain, 2),
        "tokens_a_step": BLOCK // case.steps,
        "rounds": case.rounds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompt_tokens": [len(prompt) for prompt in prompts],
    }


def write_results(figures: dict[str, Any], threads: int) -> None:
    """The committed results, with machine and date."""
    facts = {
        "command": "make bench-sampler",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads used",
        "torch": torch.__version__,
    }
    text = json.dumps({"facts": facts, "figures": figures}, indent=1)
    _RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
