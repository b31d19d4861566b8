"""The text that a recovery trains on: a corpus, the calibration parts, or what the dense model writes itself.

Whatever it is, nothing of a selection or report part is in it: documents lose the paragraphs and lines that
stand there, and written sequences that hold one are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.architecture import ModelShape
from stages.config.params import TextProtocol
from stages.config.recovery import RecoverySection
from stages.evaluate.calibrate import cache
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.reference import reference
from stages.evaluate.text import perplexity
from stages.evaluate.text.corpora import Document
from stages.evaluate.text.corpus_sources import read_texts
from stages.evaluate.text.overlaps import Seen
from stages.evaluate.workbench import Workbench
from stages.files import InputError, cache_folder, digest
from stages.progress import Progress
from stages.recovery.kept import kept

CALIBRATION, WRITTEN = "calibration", "written"
AT_ONCE = {"cpu": 32, "cuda": 1024}
"""Sequences that the dense model writes at once, at most."""
CACHE_BYTES = 12 * 2**30
"""What their keys and values may take: a bound that is the same everywhere, as it decides what is written."""
VERSION = 1
"""The version of what the dense model writes, set by hand: raise it when it changes."""


@dataclass(frozen=True)
class TrainingText:
    """Sequences (N, L) of tokens, int64, and where they come from in words."""

    tokens: Tensor
    words: str

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the tokens."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()[:16]


def training_text(bench: Workbench, section: RecoverySection) -> TrainingText:
    """About `section.tokens` tokens of the text that params ask for, in sequences of one length.

    Every source gives all that it has; what the dense model writes is the rest.

    Raises:
        InputError: a source is not there, or all are too short for a step; or sequences are longer than the
            model's context.
    """
    length, loaded = section.sequence_length, bench.checkpoint
    measured, between = bench.params.evaluate.measurement.text, loaded.tokenizer.eos_token or "\n\n"
    protocol = measured.apart(between, length)
    perplexity.check_context(protocol, loaded.context_tokens)
    parts = [corpus.parts[part] for corpus in bench.texts.values() for part in ("selection", "report")]
    seen = Seen([document for documents in parts for document in documents])
    missing = max(1, section.tokens // length)
    found, words = [], []
    for source in sorted(section.sources, key=lambda source: source == WRITTEN):
        if source == WRITTEN:
            written = _written(loaded, bench.network.device, section, missing, protocol.bos == "window")
            texts = loaded.tokenizer.batch_decode(written)
            rows = written[[place for place, text in enumerate(texts) if not seen.holds(text)]]
            told = f"written by the dense model itself, seed {section.seed}"
        else:
            rows, told = _sequences(bench, source, protocol, seen, missing)
        found.append(rows)
        words.append(told)
        missing -= len(rows)
        if missing < 1:
            break
    tokens = torch.cat(found)
    if tokens.numel() < section.tokens_per_step:
        raise InputError(
            f"params.yaml: export.recovery.text {section.text!r} holds {tokens.numel():,} tokens in "
            f"sequences of {length}, and a step takes {section.tokens_per_step:,}; give more text, or lower "
            "export.recovery.tokens_per_step"
        )
    return TrainingText(tokens, " and ".join(words))


def _sequences(
    bench: Workbench, source: str, protocol: TextProtocol, seen: Seen, most: int
) -> tuple[Tensor, str]:
    """The sequences (N, L) of a source, spread evenly over it if there are more than `most`, and its name."""
    documents, words = _documents(bench, source)
    loaded, where = bench.checkpoint, f"export.recovery.text, {source},"
    unseen = seen.without(documents)
    rows = perplexity.windows(unseen, loaded.tokenizer, protocol, None, where).tokens
    count = min(most, len(rows))
    return rows[torch.arange(count) * len(rows) // count], words


def _documents(bench: Workbench, source: str) -> tuple[list[Document], str]:
    """The documents of a source, and its name for a reader."""
    if source == CALIBRATION:
        found = [document for corpus in bench.texts.values() for document in corpus.parts["calibration"]]
        return found, f"the calibration parts of {' and '.join(bench.texts)}"
    try:
        content = read_texts(source, Path(), whole=False)
    except InputError as error:
        raise InputError(f"params.yaml: export.recovery.text: {error}") from error
    return list(content.items), content.citation


def _written(
    loaded: Checkpoint, device: torch.device, section: RecoverySection, count: int, begins: bool
) -> Tensor:
    """What the dense model writes at temperature 1, (count, L); each batch is kept as it is written.

    Where each `begins` with a BOS, that is one of the L.
    """
    length = section.sequence_length
    at_once = _at_once(loaded.shape, length, AT_ONCE[device.type])
    what = [VERSION, loaded.digest, device.type, length, at_once, section.seed]
    what += ["begins with a BOS"] if begins else []
    folder = cache_folder() / "recovery" / f"written-{digest(*what)}"
    paths = [folder / f"{number:05d}.safetensors" for number in range(-(-count // at_once))]
    found = [kept(path) for path in paths]
    if missing := [number for number, batch in enumerate(found) if batch is None]:
        todo = [(number, paths[number]) for number in missing]
        _write(loaded, device, section, todo, at_once, begins)
        found = [kept(path) for path in paths]
    return torch.cat([batch["tokens"].long() for batch in found if batch is not None])[:count]


def _at_once(shape: ModelShape, length: int, most: int) -> int:
    """A power of two of sequences whose keys and values, in 16 bits, stay below `CACHE_BYTES`."""
    each = shape.layers * 2 * shape.kv_groups * shape.head_dim * 2 * length
    while most > 1 and most * each > CACHE_BYTES:
        most //= 2
    return most


def _write(
    loaded: Checkpoint,
    device: torch.device,
    section: RecoverySection,
    todo: Sequence[tuple[int, Path]],
    at_once: int,
    begins: bool,
) -> None:
    model = reference(loaded, device)
    length = section.sequence_length
    start = int(loaded.tokenizer.bos_token_id) if begins else _first_token(loaded)
    model.generation_config.update(eos_token_id=None, pad_token_id=start, temperature=1.0, top_k=0, top_p=1.0)
    first = torch.full((at_once, 1), start, device=device)
    unit = f"batch of {at_once * length:,} tokens"
    for number, path in Progress(todo, desc="the dense model writes text", unit=unit):
        torch.manual_seed(section.seed * 1_000_003 + number)
        with torch.inference_mode():
            found = model.generate(
                first, attention_mask=torch.ones_like(first), do_sample=True, max_new_tokens=length,
            )  # fmt: skip
        cache.write(path, {"tokens": (found[:, :-1] if begins else found[:, 1:]).int()})


def _first_token(loaded: Checkpoint) -> int:
    """What a text begins with: the token between documents in training, as far as a tokenizer tells it."""
    tokenizer = loaded.tokenizer
    between = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    known = [between if between != tokenizer.unk_token_id or tokenizer.unk_token == "<|endoftext|>" else None]
    known += [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return next((int(token) for token in known if token is not None), 0)
