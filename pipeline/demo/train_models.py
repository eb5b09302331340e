"""How the bundled models were made: `make train-models`, or one by name.

Like the paper's models, each starts as an autoregressive (AR) model and is then turned into a
diffusion model: the student and teacher B into block diffusion, teacher A into full bidirectional
masked diffusion. The text is the standard library's functions outside the held-out files
(`corpus.all_functions`). A model is saved after each phase, and goes on from there when the command
is given again: `training.json` holds the last line of each phase's log, loss and tokens.

Axes: B example, S position, N masked position (flattened), V vocabulary.
"""

import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)
from transformers import Qwen3MoeForCausalLM as Qwen3Moe

from pipeline.demo.corpus import ASSETS, all_functions
from pipeline.diffusion.block_mask import hide_padding
from pipeline.objectives import masked_nll
from pipeline.student.forward import base_model, head, masked_hidden
from pipeline.text.render import render
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecordError
from storage_schemas.examples import Ints

MAX_LENGTH = 256
BLOCK_SIZE = 16
TOKENS_A_STEP = 4096
EPS = 1e-3


Kind = Literal["ar", "diffusion"]


@dataclass(frozen=True, slots=True)
class Phase:
    """What is learned, from how many tokens; with a warm-up and a cosine of its own."""

    kind: Kind
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One bundled model: its shape, and the phases of its training."""

    tokenizer: str
    attention: Literal["full", "block"]
    shape: dict[str, int]
    experts: dict[str, int] | None
    phases: tuple[Phase, ...]
    learning_rate: float = 3e-3
    seed: int = 0


PLANS = {
    "student": Plan(
        tokenizer="tokenizer-student",
        attention="block",
        shape={"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384},
        experts=None,
        phases=(Phase("ar", 1_500_000), Phase("diffusion", 1_500_000)),
    ),
    # Not bundled: the study's start, a student that has just begun to read masked text.
    "student-early": Plan(
        tokenizer="tokenizer-student",
        attention="block",
        shape={"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384},
        experts=None,
        phases=(Phase("ar", 1_000_000), Phase("diffusion", 250_000)),
    ),
    "teacher-a": Plan(
        tokenizer="tokenizer-teacher-a",
        attention="full",
        shape={"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768},
        experts={"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192},
        phases=(
            Phase("ar", 1_800_000),
            Phase("diffusion", 1_600_000),
            # after the first two it was no better than the student, for each byte of text
            Phase("diffusion", 6_000_000),
        ),
    ),
    "teacher-b": Plan(
        tokenizer="tokenizer-student",
        attention="block",
        shape={"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 640},
        experts=None,
        phases=(Phase("ar", 3_500_000), Phase("diffusion", 1_800_000)),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One function as tokens, and where its response begins."""

    ids: Ints
    num_prompt: int


def make_model(plan: Plan, tokenizer: ChatTokenizer) -> PreTrainedModel:
    """A fresh model of the planned shape, float32."""
    heads = plan.shape["hidden_size"] // 32
    common: dict[str, Any] = {
        **plan.shape,
        "vocab_size": tokenizer.vocab_size,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
        "bos_token_id": None,
    }
    torch.manual_seed(plan.seed)
    if plan.experts is None:
        return Qwen3ForCausalLM(Qwen3Config(**common))
    return Qwen3Moe(Qwen3MoeConfig(**common, **cast("Any", plan.experts), norm_topk_prob=True))


def read_texts(tokenizer: ChatTokenizer) -> list[Text]:
    """Every training function, cut to the length limit; those whose prompt fills it left out."""
    texts: list[Text] = []
    for record in all_functions("train"):
        try:
            rendered = render(record.messages, tokenizer)
        except RecordError:
            continue
        ids = np.concatenate([rendered.prompt_ids, rendered.response_ids])[:MAX_LENGTH]
        if len(rendered.prompt_ids) < MAX_LENGTH - 8:
            texts.append(Text(ids=ids, num_prompt=len(rendered.prompt_ids)))
    return texts


def batches(texts: list[Text], rng: np.random.Generator) -> Iterator[list[Text]]:
    """Endless batches of about TOKENS_A_STEP padded tokens, of similar lengths."""
    while True:
        order = rng.permutation(len(texts))
        for pool in np.array_split(order, max(1, len(order) // 2048)):
            indices = cast("list[int]", pool.tolist())
            by_length = sorted(indices, key=lambda i: len(texts[i].ids))
            groups: list[list[Text]] = [[]]
            for i in by_length:
                if (len(groups[-1]) + 1) * len(texts[i].ids) > TOKENS_A_STEP:
                    groups.append([])
                groups[-1].append(texts[i])
            for g in rng.permutation(len(groups)).tolist():
                yield groups[g]


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """A batch of texts as tensors, filled with EOS to a whole number of blocks."""

    ids_BS: Tensor
    is_real_BS: Tensor
    is_target_BS: Tensor


def pad(texts: list[Text], eos_id: int, *, fills_block: bool, learns_prompt: bool) -> Padded:
    """With `fills_block` the EOS up to a text's own whole block is real, visible and learned."""
    real = [len(text.ids) + (-len(text.ids) % BLOCK_SIZE if fills_block else 0) for text in texts]
    shape = (len(texts), max(real))
    ids_BS = np.full(shape, eos_id, np.int64)
    is_real_BS, is_target_BS = np.zeros(shape, bool), np.zeros(shape, bool)
    for b, (text, length) in enumerate(zip(texts, real, strict=True)):
        ids_BS[b, : len(text.ids)] = text.ids
        is_real_BS[b, :length] = True
        is_target_BS[b, 0 if learns_prompt else text.num_prompt : length] = True
    return Padded(
        ids_BS=torch.from_numpy(ids_BS),
        is_real_BS=torch.from_numpy(is_real_BS),
        is_target_BS=torch.from_numpy(is_target_BS),
    )


def ar_loss(model: PreTrainedModel, batch: Padded) -> Tensor:
    """Next-token cross-entropy over whole texts, padding left out."""
    logits_BSV = model(input_ids=batch.ids_BS[:, :-1], use_cache=False).logits
    next_BS = batch.ids_BS[:, 1:].masked_fill(~batch.is_real_BS[:, 1:], -100)
    return cross_entropy(logits_BSV.flatten(0, 1), next_BS.flatten())


def diffusion_loss(
    model: PreTrainedModel, batch: Padded, plan: Plan, mask_id: int, rng: np.random.Generator
) -> Tensor:
    """Masked cross-entropy weighted by 1 / t; times are stratified over the batch."""
    num_examples = len(batch.ids_BS)
    strata = (rng.permutation(num_examples) + rng.random(num_examples)) / num_examples
    time_B = torch.from_numpy(EPS + (1 - EPS) * strata).float()
    uniform_BS = torch.from_numpy(rng.random(batch.ids_BS.shape)).float()
    is_masked_BS = (uniform_BS < time_B[:, None]) & batch.is_target_BS
    if plan.attention == "block":
        # padded after whole blocks: `pad` filled them
        hidden_NH = masked_hidden(
            model, batch.ids_BS, is_masked_BS, mask_id=mask_id, block_size=BLOCK_SIZE
        )
    else:
        length = batch.ids_BS.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool)
        output = base_model(model)(
            input_ids=batch.ids_BS.masked_fill(is_masked_BS, mask_id),
            attention_mask=hide_padding(visible, batch.is_real_BS),
            use_cache=False,
        )
        hidden_NH = cast("Tensor", output.last_hidden_state)[is_masked_BS]
    term = masked_nll(
        cast("Tensor", head(model)(hidden_NH)),
        batch.ids_BS[is_masked_BS],
        time_B[:, None].expand_as(is_masked_BS)[is_masked_BS],
        int(batch.is_target_BS.sum()),
    )
    return term.mean()


class Routers:
    """The routers of a mixture of experts, watched so that their load can be balanced."""

    def __init__(self, model: PreTrainedModel, plan: Plan) -> None:
        self._per_token = plan.experts["num_experts_per_tok"] if plan.experts else 0
        self._logits: list[Tensor] = []
        for name, module in cast("Any", model).named_modules():
            if plan.experts and name.endswith("mlp.gate"):
                module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: tuple[Tensor, ...]) -> None:
        self._logits.append(output[0])  # logits first, then the chosen experts

    def loss(self) -> Tensor:
        """0.01 times experts x sum of (share of tokens x mean probability), since the last call."""
        total = torch.zeros(())
        for logits in self._logits:
            p = logits.float().softmax(-1)
            top = p.topk(self._per_token, -1).indices
            share = nn.functional.one_hot(top, p.shape[-1]).float().sum(1).mean(0)
            total = total + p.shape[-1] * (share * p.mean(0)).sum()
        total = 0.01 * total / max(1, len(self._logits))
        self._logits.clear()
        return total


def optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms, routers and stacked experts."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in cast("nn.Module", model).named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name and "gate.weight" not in name
        (matrices if is_matrix or name.endswith("_proj.weight") else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(share: float) -> float:
    """Warm-up over 3 % of the phase, then a cosine down to 2 %."""
    warm = min(1.0, share / 0.03)
    return warm * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, share))) / 2)


def train_phase(
    model: PreTrainedModel,
    plan: Plan,
    texts: list[Text],
    tokenizer: ChatTokenizer,
    routers: Routers,
    number: int,
) -> dict[str, Any]:
    """Train until the tokens of the phase of this number are read; progress is printed."""
    phase, budget = plan.phases[number].kind, plan.phases[number].tokens
    rng = np.random.default_rng([plan.seed, number])
    rate = plan.learning_rate if phase == "ar" else plan.learning_rate * 0.6
    steppers = optimizers(model, rate)
    tokens, step, smooth, began = 0, 0, float("nan"), time.monotonic()
    for step, group in enumerate(batches(texts, rng)):
        # The prompt is learned as well for the first two thirds: more signal from each text.
        batch = pad(
            group,
            tokenizer.eos_id,
            fills_block=phase == "diffusion" and plan.attention == "block",
            learns_prompt=tokens < budget * 2 / 3,
        )
        if phase == "ar":
            loss = ar_loss(model, batch)
        else:
            loss = diffusion_loss(model, batch, plan, tokenizer.mask_id, rng)
        loss = loss + routers.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for param_group in stepper.param_groups:
                param_group["lr"] = rate * learning_rate_factor(tokens / budget)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        tokens += int(batch.is_real_BS.sum())
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 20 == 0 or tokens >= budget:
            speed = tokens / (time.monotonic() - began)
            print(
                f"{phase} step {step} tokens {tokens:,} of {budget:,} loss {smooth:.3f} "
                f"{speed:,.0f} tokens/s, {(budget - tokens) / speed / 60:.0f} min left",
                flush=True,
            )
        if tokens >= budget:
            break
    return {
        "kind": phase,
        "tokens": tokens,
        "steps": step + 1,
        "loss": smooth,
        "seconds": time.monotonic() - began,
    }


def train(name: str, folder: Path) -> Path:
    """Train what is missing of one model in its folder; in bfloat16, beside its tokenizer."""
    plan = PLANS[name]
    done = finished_phases(folder)
    if len(done) == len(plan.phases):
        return folder
    tokenizer = ChatTokenizer.load(str(ASSETS / plan.tokenizer))
    texts = read_texts(tokenizer)
    print(f"{len(texts):,} texts, {sum(len(t.ids) for t in texts):,} tokens", flush=True)
    model = load_model(folder) if done else make_model(plan, tokenizer)
    routers = Routers(model, plan)
    for number in range(len(done), len(plan.phases)):
        done.append(train_phase(model, plan, texts, tokenizer, routers, number))
        save_model(model, tokenizer, folder, plan, done)
    return folder


def finished_phases(folder: Path) -> list[dict[str, Any]]:
    """What `training.json` says of the phases that the saved model has behind it."""
    about = folder / "training.json"
    return json.loads(about.read_text())["phases"] if about.exists() else []


def load_model(folder: Path) -> PreTrainedModel:
    """A saved model, to be trained further in float32."""
    auto = cast("Any", AutoModelForCausalLM)
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def save_model(
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    folder: Path,
    plan: Plan,
    done: list[dict[str, Any]],
) -> None:
    """Weights in bfloat16, tokenizer, and how they came about; the model itself stays as it is."""
    state = {
        name: value.to(torch.bfloat16)
        for name, value in cast("nn.Module", model).state_dict().items()
    }
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=state)
    tokenizer.hf.save_pretrained(folder)
    about = {
        "plan": asdict(plan),
        "phases": done,
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    print(train(sys.argv[1], ASSETS / sys.argv[1]))
