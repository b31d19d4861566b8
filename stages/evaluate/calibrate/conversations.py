"""Conversations that the dense model writes in its chat template: the instruction text of a calibration.

A chat model that is calibrated on articles alone forgets how it answers, and conversations are at hand for no
model but from itself: going on where a user's turn begins, it writes what users ask (Magpie, Xu et al. 2024,
arXiv 2406.08464), and then its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from stages.config.params import Calibration
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.text.prompts import chat, chats, check_opening, opening, stops
from stages.files import InputError, digest, kept, read_document, write_json
from stages.progress import Progress

SCHEMA, VERSION = "prunecast.conversations", 1
WRITTEN = 1
"""The version of what is written, set by hand: raise it when it changes."""
TURN, ANSWER = 64, 192
"""Tokens of a user's turn and of an answer, at most."""
WARMTH, TOP_P = (1.0, 0.7), 0.95
"""The temperatures of a user's turn, which should differ, and of an answer; what tokens are drawn from."""
AT_ONCE = 32
HELD_OUT = 8
"""Conversations on which models are compared, and nothing is calibrated."""
TRIES = 4
"""Batches in a row without a conversation that is new, after which more are not tried."""


@dataclass(frozen=True)
class Conversations:
    """Whole chats in the model's template, by what they are for; none where there is no template."""

    calibration: Sequence[str] = ()
    report: Sequence[str] = ()


def conversations(
    loaded: Checkpoint, device: torch.device, section: Calibration, path: Path
) -> Conversations:
    """Conversations of as many tokens as `section` asks for: those at `path`, if they are of this model.

    Else the dense model writes new ones there; without a chat template it writes none.

    Raises:
        InputError: its template takes no user's turn, or it writes next to nothing.
    """
    needed = section.conversations * section.sequence_length
    template = loaded.tokenizer.chat_template if chats(loaded.tokenizer) else None
    key = digest(WRITTEN, loaded.digest, str(template), needed if template else 0)

    def read(path: Path) -> Conversations | None:
        return read_document(path, SCHEMA, VERSION, "evaluate", lambda document: _of(document, key))

    found = kept(path, read)
    if found is not None:
        return found
    if not needed or template is None:
        if needed:
            print(f"{loaded.name} has no chat template: no conversations calibrate it", flush=True)
        found = Conversations()
    else:
        check_opening(loaded.tokenizer)
        print(f"Writing {needed:,} tokens of conversations, by the dense model itself", flush=True)
        found = _written(loaded, device, needed)
    write_json(path, SCHEMA, VERSION, {"key": key, **{k: list(v) for k, v in vars(found).items()}})
    return found


def _of(document: dict[str, Any], key: str) -> Conversations | None:
    if document["key"] != key:
        return None
    return Conversations(tuple(document["calibration"]), tuple(document["report"]))


def _written(loaded: Checkpoint, device: torch.device, needed: int) -> Conversations:
    """`HELD_OUT` conversations, and others of so many tokens in all; no two begin alike."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=dtype)
    writer = _Writer(model.to(device).eval(), loaded, device)
    found: dict[str, str] = {}
    tokens = begun = in_vain = 0
    expected = needed // (TURN + ANSWER) + 1 + HELD_OUT
    bar: Progress[None] = Progress(desc="conversations", unit="conversation", total=expected)
    while len(found) <= HELD_OUT or tokens < needed:
        each = tokens / (len(found) - HELD_OUT) if tokens else TURN + ANSWER
        missing = max(0, HELD_OUT - len(found)) + int((needed - tokens) / each) + 1
        count, before = min(AT_ONCE, missing), len(found)
        for turn, whole in writer.write(count, seed=begun):
            found.setdefault(turn, whole)
        begun += count
        in_vain = 0 if len(found) > before else in_vain + 1
        if in_vain == TRIES:
            raise InputError(
                f"model.source {loaded.name!r}: of {begun} conversations that the dense model began, "
                f"{len(found)} came to something, {tokens:,} tokens of {needed:,}; set "
                "evaluate.calibration.conversations to 0, or to fewer"
            )
        tokens = writer.length("".join([*found.values()][HELD_OUT:]))
        bar.total = max(expected, before + missing)
        bar.update(len(found) - bar.n)
    bar.close()
    texts = list(found.values())
    return Conversations(calibration=texts[HELD_OUT:], report=texts[:HELD_OUT])


@dataclass(frozen=True)
class _Writer:
    model: Any  # transformers.PreTrainedModel
    loaded: Checkpoint
    device: torch.device

    def write(self, count: int, seed: int) -> list[tuple[str, str]]:
        """So many conversations, each the user's turn and the whole; without those where one says nothing."""
        tokenizer = self.loaded.tokenizer
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            turns = self._continued([opening(tokenizer)] * count, TURN, WARMTH[0])
            asked = [turn for turn in turns if turn]
            begun = [chat(tokenizer, [turn], asks=True) for turn in asked]
            answers = self._continued(begun, ANSWER, WARMTH[1]) if begun else []
        return [(t, chat(tokenizer, [t, a])) for t, a in zip(asked, answers, strict=True) if a]

    def length(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continued(self, texts: Sequence[str], tokens: int, temperature: float) -> list[str]:
        """How each text goes on for at most so many tokens, without the special ones."""
        tokenizer, ends = self.loaded.tokenizer, stops(self.loaded.tokenizer, self.loaded.generation_config)
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, rows))
        tokens = min(tokens, self.loaded.context_tokens - longest)
        if tokens < 1:
            return [""] * len(rows)
        padding = min(ends, default=0)
        given = [[padding] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True, temperature=temperature, top_k=0, top_p=TOP_P, max_new_tokens=tokens,
            eos_token_id=sorted(ends) or None, pad_token_id=padding,
        )  # fmt: skip
        with torch.inference_mode():
            found = self.model.generate(
                torch.tensor(given, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
            )
        rows = [list(takewhile(lambda token: token not in ends, row)) for row in found[:, longest:].tolist()]
        said = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [str(text).strip() for text in said]
