"""Peak memory and time of head + CE + TIDAL at a real vocabulary, of one way, in this process.

`python head_memory.py ours|plain` prints one JSON line. V = 151,936, H = 1024, two sequences of 512
tokens, half of them masked, head trainable, float32. plain: the head on all 2 x 1024 rows (noised
and clean half, as transformers' forward has them), TIDAL on the dense [M, V] teacher. ours: block
by block from a sketch of r = 4096. Left out: the head's weights, one copy of their gradient, and
the teacher's input (dense rows; the sketch and its decoder). Linux only.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.objective import TidalKl
from pipeline.objectives import gold_logp, masked_nll, masked_nll_from_logp, tidal_kl
from pipeline.targets.sketch import SketchDecoder
from pipeline.train.build import StudentAnswer, build_distillation, lambda_at
from pipeline.train.expand import sketch_expander
from pipeline.train.head_loss import head_loss, rows_per_block
from pipeline.train.tensors import Block, KeptRows, LossRows, cut_blocks

VOCAB, HIDDEN, RANK = 151_936, 1024, 4096
NUM_ROWS, NUM_MASKED = 2 * 1024, 512
TIME, PROGRESS, NUM_MASKABLE = 0.5, 0.3, 1024
MIB = 2**20


def main() -> None:
    """One way, measured."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    head = nn.Linear(HIDDEN, VOCAB, bias=False)
    hidden_PH = torch.randn(NUM_ROWS, HIDDEN, requires_grad=True)
    ids_M = torch.randint(VOCAB, (NUM_MASKED,))
    way = {"ours": Ours, "plain": Plain}[sys.argv[1]](ids_M)
    resident = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
    began = time.process_time()
    way.loss(head, hidden_PH).backward()
    seconds = time.process_time() - began
    assert head.weight.grad is not None, "the head is trained"
    gradient = head.weight.grad.numel() * head.weight.grad.element_size()
    peak = resident_bytes("VmHWM") - resident - gradient
    print(json.dumps({"peak_mib": peak / MIB, "cpu_s": seconds}))


def resident_bytes(name: str) -> int:
    """A line of this process's memory: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"expected {name} in /proc/self/status")


class Plain:
    """All logits, then the formulas."""

    def __init__(self, ids_M: Tensor) -> None:
        self.ids_M = ids_M
        self.teacher_MV = torch.randn(NUM_MASKED, VOCAB)
        noised = torch.arange(NUM_ROWS) % 1024 < 512
        self.is_masked_P = noised & (torch.arange(NUM_ROWS) % 2 == 0)

    def loss(self, head: nn.Linear, hidden_PH: Tensor) -> Tensor:
        """CE and TIDAL."""
        logits_MV = head(hidden_PH)[self.is_masked_P]
        time_M = torch.full((NUM_MASKED,), TIME)
        nll = masked_nll(logits_MV, self.ids_M, time_M, NUM_MASKABLE)
        tidal = TidalKl(type="tidal_kl")
        term = tidal_kl(
            logits_MV,
            self.teacher_MV,
            temperature=tidal.temperature,
            lambda_M=lambda_at(tidal.tidal, PROGRESS, time_M),
            weight_M=torch.ones(NUM_MASKED),
        )
        return nll.mean() + term.mean()


class Ours:
    """As stage 2 does it."""

    def __init__(self, ids_M: Tensor) -> None:
        decoder = SketchDecoder(
            decode_RV=torch.randn(RANK, VOCAB), base_V=torch.randn(VOCAB), step=0.01
        )
        none_M = torch.full((NUM_MASKED,), -1)
        time_M, nothing = torch.full((NUM_MASKED,), TIME), torch.zeros(0)
        self.rows = LossRows(
            target_id_N=ids_M,
            time_N=time_M,
            chunk_N=none_M,
            teacher_logp_C=nothing,
            time_C=nothing,
            row_M=torch.arange(NUM_MASKED),
            teacher=KeptRows(
                ids_MK=ids_M[:, None],
                logits_MK=time_M[:, None],
                logsumexp_M=torch.zeros(NUM_MASKED),
                sketch_MR=torch.randint(-2, 3, (NUM_MASKED, RANK), dtype=torch.int16),
                gold_id_M=ids_M,
                gold_logit_M=torch.zeros(NUM_MASKED),
            ),
        )
        self.distillation = build_distillation(
            TidalKl(type="tidal_kl"), shared_vocab=VOCAB, expand=sketch_expander(decoder)
        )

    def loss(self, head: nn.Linear, hidden_PH: Tensor) -> Tensor:
        """CE and TIDAL, block by block."""
        order = np.arange(NUM_MASKED, dtype=np.int32)
        blocks = cut_blocks(
            np.full_like(order, -1), order, rows_per_block(VOCAB, torch.device("cpu"))
        )
        return head_loss(head, hidden_PH[:NUM_MASKED], blocks, self._block_loss)

    def _block_loss(self, logits_RV: Tensor, block: Block) -> Tensor:
        assert self.distillation is not None, "TIDAL"
        rows = self.rows.block(block)
        logp_R = gold_logp(logits_RV, rows.target_id_N)
        nll = masked_nll_from_logp(logp_R, rows.time_N, NUM_MASKABLE)
        answer = StudentAnswer(logits_NV=logits_RV, logp_N=logp_R)
        term = self.distillation.term(answer, rows, PROGRESS).term
        return nll.mean() + term.total / NUM_MASKED


if __name__ == "__main__":
    main()
