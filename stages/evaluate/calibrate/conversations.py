"""Conversations that the dense model writes in its chat template: the instruction text of a calibration.

A chat model that is calibrated on articles alone forgets how it answers, and conversations are at hand for no
model but from itself: going on where a user's turn begins, it writes what users ask (Magpie, Xu et al. 2024,
arXiv 2406.08464), and then its answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from stages.config.params import Calibration
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.reference import reference
from stages.evaluate.text.prompts import Template, chats, check_template, stops
from stages.files import InputError, digest, kept, read_document, write_json
from stages.progress import Progress

SCHEMA, VERSION = "prunecast.conversations", 1
WRITTEN = 1
"""The version of what is written, set by hand: raise it when it changes."""
TURN, ANSWER = 64, 192
"""Tokens of a user's turn and of an answer, at most."""
WARMTH, TOP_P = (1.0, 0.7), 0.95
"""The temperatures of a user's turn, which should differ, and of an answer; what tokens are drawn from."""
AT_ONCE, AT_LEAST = 32, 8
"""Conversations that are begun together: with few of them next to nothing is faster."""
AROUND = 64
"""Tokens of a template around a turn and an answer, about."""
HELD_OUT = 8
"""Conversations on which models are compared, and nothing is calibrated."""
TRIES = 4
"""Batches in a row without a conversation that is new, after which more are not tried."""


@dataclass(frozen=True)
class Conversations:
    """Chats in the model's template, by what they are for; none where there is no template.

    An answer that was longer than `ANSWER` tokens ends where it was cut, without what the template says at an
    end. `opening` is what all of them begin with.
    """

    opening: str = ""
    calibration: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


def conversations(
    loaded: Checkpoint, device: torch.device, section: Calibration, path: Path, may_write: bool = True
) -> Conversations:
    """Conversations of as many tokens as `section` asks for: those at `path`, if they are of this model.

    Else the dense model writes new ones there; without a chat template it writes none.

    Raises:
        InputError: its template takes no chat, it writes next to nothing, or it may not write and has to.
    """
    needed = section.conversations * section.sequence_length
    writer, key = None, digest("none")
    if needed and chats(loaded.tokenizer):
        writer = _Writer(loaded, check_template(loaded.tokenizer))
        key = digest(WRITTEN, loaded.digest, vars(writer.template), sorted(writer.ends), needed)

    def read(path: Path) -> Conversations | None:
        return read_document(path, SCHEMA, VERSION, "evaluate", lambda document: _of(document, key))

    found = kept(path, read)
    if found is not None:
        return found
    if writer is None:
        if needed:
            print(f"{loaded.name} has no chat template: no conversations calibrate it", flush=True)
        found = Conversations()
    elif not may_write:
        raise InputError(
            f"{path} holds no conversations of this model, of {needed:,} tokens as evaluate.calibration asks "
            "for: what was measured was calibrated on others. Run `dvc repro evaluate`, and what follows it"
        )
    else:
        print(f"Writing {needed:,} tokens of conversations, by the dense model itself", flush=True)
        found = _written(writer, reference(loaded, device), needed)
    write_json(path, SCHEMA, VERSION, {"key": key, **vars(found)})
    return found


def _of(document: dict[str, Any], key: str) -> Conversations | None:
    if document["key"] != key:
        return None
    texts = (tuple(map(str, document[part])) for part in ("calibration", "report"))
    return Conversations(str(document["opening"]), *texts)


def _written(writer: _Writer, model: Any, needed: int) -> Conversations:
    """`HELD_OUT` conversations, and others of so many tokens in all; no two begin alike."""
    found: dict[str, str] = {}
    tokens = begun = in_vain = 0
    bar: Progress[None] = Progress(desc="conversations", unit="token", total=needed)
    while len(found) <= HELD_OUT or tokens < needed:
        each = tokens / (len(found) - HELD_OUT) if tokens else TURN + ANSWER
        missing = max(0, HELD_OUT - len(found)) + int((needed - tokens) / each) + 1
        rate = max(len(found), 1) / max(begun, 1)
        wanted = max(AT_LEAST, math.ceil(missing / rate))
        count, before = min(AT_ONCE, wanted), len(found)
        bar.total = (begun + wanted) * (TURN + ANSWER)
        for turn, whole in writer.write(model, count, seed=begun, steps=_Steps(bar)):
            found.setdefault(turn, whole)
        begun += count
        in_vain = 0 if len(found) > before else in_vain + 1
        if in_vain == TRIES:
            raise InputError(
                f"model.source {writer.loaded.name!r}: of {begun} conversations that the dense model began, "
                f"{len(found)} came to something, {tokens:,} tokens of {needed:,}; set "
                "evaluate.calibration.conversations to 0, or to fewer"
            )
        tokens = len(writer.tokens("".join([*found.values()][HELD_OUT:])))
        bar.update(begun * (TURN + ANSWER) - bar.n)  # answers may have ended early
    bar.close()
    texts = tuple(found.values())
    return Conversations(writer.template.opening, texts[HELD_OUT:], texts[:HELD_OUT])


class _Steps(BaseStreamer):
    """Counts the tokens that a model writes; what it is given before them comes as a matrix."""

    def __init__(self, bar: Progress[None]) -> None:
        self._bar = bar

    def put(self, value: Tensor) -> None:
        if value.ndim == 1:
            self._bar.update(len(value))

    def end(self) -> None:
        """Nothing is open."""


class _Writer:
    """Writes conversations of a model in its template.

    `ends` are the tokens that end a turn or an answer: those of the model and of the template, and any other
    that stands for no text.
    """

    def __init__(self, loaded: Checkpoint, template: Template) -> None:
        self.loaded, self.template = loaded, template
        added = loaded.tokenizer.added_tokens_decoder
        self.ends = stops(loaded.tokenizer, loaded.generation_config)
        self.ends |= {number for number, token in added.items() if token.special}
        for text in (template.between, template.ending):
            self.ends |= {number for number in self.tokens(text.strip())[:1] if number in added}

    def tokens(self, text: str) -> list[int]:
        return list(self.loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def write(
        self, model: Any, count: int, seed: int, steps: BaseStreamer | None = None
    ) -> list[tuple[str, str]]:
        """So many conversations, each the user's turn and the whole.

        Without those whose turn comes to no end, and those where one of the two says nothing.
        """
        opening, between, ending = self.template.opening, self.template.between, self.template.ending
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            turns = self._continued(model, [opening] * count, between, TURN, WARMTH[0], steps)
            asked = [turn for turn, ended in turns if turn and ended]
            begun = [opening + turn + between for turn in asked]
            answers = self._continued(model, begun, ending, ANSWER, WARMTH[1], steps) if begun else []
        return [
            (turn, start + answer + ending * ended)
            for turn, start, (answer, ended) in zip(asked, begun, answers, strict=True)
            if answer
        ]

    def _continued(
        self,
        model: Any,
        texts: Sequence[str],
        after: str,
        tokens: int,
        temperature: float,
        steps: BaseStreamer | None,
    ) -> list[tuple[str, bool]]:
        """How each text goes on for at most so many tokens, and whether it came to an end before.

        What stands `after` it in the template may end it too, where that is text like any other.
        """
        rows = [self.tokens(text) for text in texts]
        longest = max(map(len, rows))
        tokens = min(tokens, self.loaded.context_tokens - longest)
        if tokens < 1:
            return [("", False)] * len(rows)
        padding = min(self.ends, default=0)
        given = [[padding] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True, temperature=temperature, top_k=0, top_p=TOP_P, max_new_tokens=tokens,
            eos_token_id=sorted(self.ends) or None, pad_token_id=padding,
        )  # fmt: skip
        with torch.inference_mode():
            made = model.generate(
                torch.tensor(given, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                streamer=steps,
            )
        written = made[:, longest:].tolist()
        said = [list(takewhile(lambda token: token not in self.ends, row)) for row in written]
        mark = after.strip().partition("\n")[0]
        found = []
        for row, own in zip(written, said, strict=True):
            text = str(self.loaded.tokenizer.decode(own))
            start, marked, _ = text.partition(mark) if mark else (text, "", "")
            found.append((start.strip(), bool(marked) or len(own) < len(row)))
        return found
