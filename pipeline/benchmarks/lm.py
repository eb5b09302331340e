"""A block-diffusion student as a model of lm-evaluation-harness: it writes, and it weighs answers.

Axes: B row, S position, N masked position that is scored (flattened), D draw of a mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from lm_eval.api import registry
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pipeline.diffusion.rng import uniforms_for
from pipeline.generate.decoding import Decoding
from pipeline.generate.sample import generate, longest_prompt
from pipeline.objectives.likelihood import gold_logp
from pipeline.student.forward import head, masked_hidden
from pipeline.text.response import ResponseText
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Bools, Ints, Message

_SEED = 0


class TidecacheLM(LM):
    """A student, its tokenizer, and how it decodes.

    An answer's log-likelihood is a lower bound of the true one: for an answer of n tokens, the mean
    over `num_draws` masks of l of them, l spread over 1..n, of n / l times the masked tokens' own.
    The answers to one question are weighed under masks of the same random numbers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ChatTokenizer,
        decoding: Decoding,
        *,
        batch_size: int = 8,
        num_draws: int = 16,
    ) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._batch_size = batch_size
        self._num_draws = num_draws
        self._response = ResponseText.of(tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """What lm-evaluation-harness files rendered prompts under."""
        return self._tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template is the tokenizer's; its fingerprint names it."""
        del chat_template
        return self._tokenizer.fingerprint

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt's text, and what the template puts before a response (an empty think block).

        A last message of the assistant's is the beginning of the response.
        """
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in chat_history]
        begun = ""
        if not add_generation_prompt and messages and messages[-1].role == "assistant":
            begun = messages.pop().content
        text = self._tokenizer.chat_text(messages, add_generation_prompt=True)
        return text + self._response.before + begun

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each context's response, up to the first of its stop sequences."""
        del disable_tqdm
        texts: dict[int, str] = {}
        for options, places in _by_options(requests):
            decoding = self._with_options(options)
            for start in range(0, len(places), self._batch_size):
                batch = places[start : start + self._batch_size]
                prompts = [self._prompt(_args(requests[i])[0], decoding) for i in batch]
                made = generate(
                    self._model,
                    prompts,
                    decoding,
                    mask_id=self._tokenizer.mask_id,
                    eos_id=self._tokenizer.eos_id,
                )
                for i, response in zip(batch, made, strict=True):
                    text = self._response.of_tokens(response.ids)
                    texts[i] = cut_at(text, options.get("until") or [])
        return [texts[i] for i in range(len(requests))]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each continuation after its context; the second says if all its tokens are likeliest.

        They are that if each masked token of each draw is.
        """
        del disable_tqdm
        return [self._weigh(*_args(request)) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused: a student is trained on responses, not on running text."""
        raise RecipeError(
            "expected tasks that generate or choose an answer, got one that asks for the "
            "likelihood of running text, which a student of responses does not give; use "
            "tidecache evaluate --records for held-out likelihood"
        )

    def _with_options(self, options: dict[str, Any]) -> Decoding:
        sampled = options.get("do_sample", False)
        return replace(
            self._decoding,
            max_new_tokens=int(options.get("max_gen_toks", self._decoding.max_new_tokens)),
            temperature=float(options.get("temperature", 0.0)) if sampled else 0.0,
        )

    def _prompt(self, text: str, decoding: Decoding) -> Ints:
        """Its tokens; of one that is too long the end, as for other models of the harness."""
        ids = self._tokenizer.encode(text)
        longest = longest_prompt(self._model, decoding)
        return ids if longest is None else ids[-longest:]

    @torch.no_grad()
    def _weigh(self, context: str, answer: str) -> tuple[float, bool]:
        ids = self._tokenizer.encode(answer)
        if len(ids) == 0:
            return 0.0, True
        context_ids = self._prompt(context, replace(self._decoding, max_new_tokens=len(ids)))
        masks_DN = draw_masks(context, len(ids), self._num_draws)
        logp_DN = np.zeros(masks_DN.shape)
        is_best_DN = np.ones(masks_DN.shape, dtype=np.bool_)
        for start in range(0, len(masks_DN), self._batch_size):
            rows = slice(start, start + self._batch_size)
            logp_DN[rows], is_best_DN[rows] = self._score(context_ids, ids, masks_DN[rows])
        weight_D = len(ids) / masks_DN.sum(1)
        return float((weight_D * logp_DN.sum(1)).mean()), bool(is_best_DN.all())

    def _score(
        self, context_ids: Ints, ids: Ints, masks_BN: Bools
    ) -> tuple[NDArray[np.float64], Bools]:
        """Log-likelihood of each masked answer token, and whether it is likeliest; else 0 and True.

        What is left of the last block is masked, as in generation: nothing shows where it ends.
        """
        size, mask_id = self._decoding.block_size, self._tokenizer.mask_id
        whole = np.concatenate([context_ids, ids])
        rest = -len(whole) % size
        ids_S = np.concatenate([whole, np.full(rest, mask_id, whole.dtype)])
        scored_BS = np.zeros((len(masks_BN), len(ids_S)), dtype=np.bool_)
        scored_BS[:, len(context_ids) : len(whole)] = masks_BN
        masked_BS = scored_BS.copy()
        masked_BS[:, len(whole) :] = True
        device = self._model.device
        ids_BS = torch.from_numpy(ids_S).long().to(device).expand(len(masks_BN), -1)
        hidden_NH = masked_hidden(
            self._model,
            ids_BS,
            torch.from_numpy(masked_BS).to(device),
            mask_id=mask_id,
            block_size=size,
        )
        is_scored_N = torch.from_numpy(scored_BS[masked_BS]).to(device)
        logits_NV = head(self._model)(hidden_NH[is_scored_N])
        logits_NV[:, mask_id] = -torch.inf  # it is never an answer
        gold_N = torch.from_numpy(np.broadcast_to(ids, masks_BN.shape)[masks_BN]).long().to(device)
        logp_BN, is_best_BN = np.zeros(masks_BN.shape), np.ones(masks_BN.shape, dtype=np.bool_)
        logp_BN[masks_BN] = gold_logp(logits_NV, gold_N).double().cpu().numpy()
        is_best_BN[masks_BN] = (logits_NV.argmax(-1) == gold_N).cpu().numpy()
        return logp_BN, is_best_BN


cast("Any", registry).register_model("tidecache")(TidecacheLM)


def draw_masks(context: str, num_tokens: int, num_draws: int) -> Bools:
    """[D, N]: masks of an answer's tokens; how many are masked is spread evenly over 1..N.

    Keyed by the context: shorter and longer answers to a question share their random numbers.
    """
    masks_DN = np.zeros((num_draws, num_tokens), dtype=np.bool_)
    (offset,) = uniforms_for(_SEED, context, 0, "time", 1).tolist()
    for d in range(num_draws):
        num_masked = 1 + int(num_tokens * (d + offset) / num_draws)
        order = np.argsort(uniforms_for(_SEED, context, d, "mask", num_tokens), kind="stable")
        masks_DN[d, order[:num_masked]] = True
    return masks_DN


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first of these that it holds; an empty one stops nothing."""
    ends = [text.find(stop) for stop in until if stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _by_options(requests: Sequence[Instance]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Requests of equal options together, by their places, the longest contexts first."""

    def options(i: int) -> str:
        return repr(sorted(cast("dict[str, Any]", _args(requests[i])[1]).items()))

    def order(i: int) -> tuple[str, int]:
        return options(i), -len(_args(requests[i])[0])

    for _, group in groupby(sorted(range(len(requests)), key=order), key=options):
        places = list(group)
        yield cast("dict[str, Any]", _args(requests[places[0]])[1]), places


def _args(request: Instance) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", cast("Any", request).args)
