"""What one evaluation reads of a part of the corpora: counted where they are at hand, else estimated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.params import Corpora, Division, Measurement, ModelSection, Params, Part, PartSources
from stages.files import InputError, located
from stages.metrics.metric import format_of

BYTES_PER_TOKEN = 4.0
"""What English takes, within a fifth: Llama's 32,000 tokens 3.8 bytes of WikiText-2, SmolLM2's 49,152 4.2."""
_QUESTION = {"likelihood": (115, 35, 200), "letter": (300, 4, 2000)}
"""Tokens run and predicted a question, and tokens of its row: MMLU's test questions, packed as they are
measured (five examples of a subject are run once for the questions that share a row)."""
_SPLITS = {  # bytes and rows of published splits
    "Salesforce/wikitext:wikitext-2-raw-v1": {
        "train": (10_920_000, 36_718),
        "validation": (1_140_000, 3_760),
        "test": (1_290_590, 4_358),
    },
    "ptb-text-only/ptb_text_only:": {
        "train": (5_101_618, 42_068),
        "validation": (399_782, 3_370),
        "test": (449_945, 3_761),
    },
    "allenai/c4:en/c4-validation.00000-of-00008.json.gz": {"validation": (99_000_000, 45_576)},
    "cais/mmlu:all": {"dev": (0, 285), "validation": (0, 1_531), "test": (0, 14_042)},
}
_SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class TokenCount:
    """What one evaluation reads.

    tokens are run (padding included), predicted ones have their distribution over the vocabulary
    computed, and attended counts the query-key pairs of one head. questions counts each format's.
    """

    windows: int
    questions: int
    batches: int
    tokens: int
    predicted: int
    attended: int
    exact: bool


def at_hand(params: Params) -> bool:
    """Whether model and corpora can be read without the hub, so that counting takes seconds."""
    corpora, model = params.corpora, params.model.source
    if not (model.startswith("package:") or located(model, key="model.source ").exists()):
        return False
    return not any(
        source.startswith("hub:")
        for entry in (*corpora.texts.values(), *corpora.questions.values())
        for source in ([entry] if isinstance(entry, str) else entry.model_dump().values())
    )


class TokenCounter:
    """Counts on the corpora themselves, with the model's tokenizer."""

    def __init__(self, params: Params, device: str) -> None:
        from stages.evaluate.text.corpora import load_questions, load_texts

        self._device = device
        reader = reader_of(params.model)
        self._tokenizer, self._context_tokens = reader.tokenizer, reader.context_tokens
        self._texts, self._questions = load_texts(params.corpora), load_questions(params.corpora)

    def __call__(self, part: Part, measurement: Measurement, texts_alone: bool = False) -> TokenCount:
        """What an evaluation on that part reads; questions too, unless of `texts_alone`.

        Raises:
            InputError: a corpus is too small for the measurement.
        """
        from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
        from stages.evaluate.text import mmlu, perplexity
        from stages.evaluate.text.selection import select

        limit = TOKENS_PER_BATCH[self._device]
        questions = {} if texts_alone else self._questions
        selection = select(self._texts, questions, part, self._tokenizer, measurement, self._context_tokens)
        batches = []
        for rows in selection.windows.values():
            batches += perplexity.batches(rows.tokens, limit, rows.predicted)
        for name, items in selection.items.items():
            batches += mmlu.batches(items, limit, shared=format_of(name) == "letter")
        attended = [b.tokens.numel() * b.tokens.shape[1] // (2 if b.mask is None else 1) for b in batches]
        return TokenCount(
            windows=sum(len(rows.tokens) for rows in selection.windows.values()),
            questions=sum(len(items) for items in selection.items.values()),
            batches=len(batches),
            tokens=sum(b.tokens.numel() for b in batches),
            predicted=sum(b.targets.numel() for b in batches),
            attended=sum(attended),
            exact=True,
        )


@dataclass(frozen=True)
class Reader:
    """What a model reads text with: its tokenizer, and how many tokens it was made for."""

    tokenizer: Any
    context_tokens: int


def reader_of(model: ModelSection) -> Reader:
    """The reader of a model, of which no weight is read.

    Raises:
        InputError: the model is not there, or its tokenizer is damaged or another model's.
    """
    from transformers import AutoTokenizer

    from stages.evaluate.network import gguf_source
    from stages.evaluate.network.tokenizer import accepted, load_tokenizer
    from stages.families import register_pruned
    from stages.sample.gguf_header import read_header
    from stages.sample.source import locate, read_config, read_model

    source, described = locate(model), read_model(model)
    if source.kind == "gguf":
        return Reader(gguf_source.tokenizer(read_header(source.path)), described.context_tokens)
    register_pruned(read_config(source), model.source)
    if source.kind == "folder":
        tokenizer = load_tokenizer(source.path, model, described.shape.vocabulary)
        return Reader(tokenizer, described.context_tokens)
    trust = model.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.source, revision=model.revision, trust_remote_code=trust
        )
    except Exception as error:  # of the hub, of the network, of its files
        raise InputError(
            f"model.source {model.source!r}: its tokenizer cannot be fetched or loaded "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''})"
        ) from error
    return Reader(accepted(tokenizer, model, described.shape.vocabulary), described.context_tokens)


def estimated(corpora: Corpora, part: Part, measurement: Measurement, batch_tokens: int) -> TokenCount:
    """What an evaluation on that part reads, without a look at the corpora.

    Raises:
        InputError: all of a corpus is asked for, and how large it is is not known.
    """
    text = measurement.text
    windows = 0
    for name, entry in corpora.texts.items():
        if measurement.windows is not None:
            windows += measurement.windows
            continue
        size, rows = _known(f"corpora.texts.{name}", entry, part, corpora.division)
        tokens = size / BYTES_PER_TOKEN + rows
        windows += int((tokens - text.sequence_length) // text.stride) + 1
    run, predicted = windows * text.sequence_length, windows * min(text.stride, text.sequence_length - 1)
    attended, batches, questions = run * text.sequence_length // 2, -(-run // batch_tokens), 0
    for name, entry in corpora.questions.items():
        count = measurement.questions
        if count is None:
            count = round(_known(f"corpora.questions.{name}", entry, part, corpora.division)[1])
        for style in measurement.question_formats:
            own, read, row = _QUESTION[style]
            if style == "likelihood" and measurement.question_tokens is not None:
                own = min(own, measurement.question_tokens)
            questions, predicted, run = questions + count, predicted + count * read, run + count * own
            attended, batches = attended + count * own * row, batches + -(-count * own // batch_tokens)
    return TokenCount(windows, questions, batches, run, predicted, attended, exact=False)


def _known(key: str, entry: str | PartSources, part: Part, division: Division) -> tuple[float, float]:
    """Bytes and rows of a published split, or of a slice of it, or of that one's part by the division."""
    source = entry if isinstance(entry, str) else getattr(entry, part)
    name, config, split = (*source.removeprefix("hub:").split(":", 2), "", "")[:3]
    published = _SPLITS.get(f"{name.partition('@')[0]}:{config}", {})
    found = _SPLIT.fullmatch(split)
    if found is None or found[1] not in published:
        raise InputError(
            f"{key}, part {part}: all of {source!r} is asked for, and how much that is cannot be told "
            "without reading it; add --count, or set windows and questions"
        )
    size, rows = published[found[1]]
    start, stop = (_row(edge, rows, otherwise) for edge, otherwise in ((found[2], 0), (found[3], rows)))
    share = max(0, stop - start) / rows
    share *= getattr(division, part) if isinstance(entry, str) else 1
    return size * share, rows * share


def _row(edge: str | None, rows: int, otherwise: int) -> int:
    """The row that one end of a slice such as [10%:] or [-100:] means."""
    if edge is None:
        return otherwise
    number = round(int(edge[:-1]) * rows / 100) if edge.endswith("%") else int(edge)
    return min(rows, number) if number >= 0 else max(0, rows + number)


def token_counts(params: Params, device: str, batch_tokens: int, count: bool) -> Mapping[str, TokenCount]:
    """What an evaluation reads as a pair, as a finalist and for the final table; and on its texts alone.

    "steps" are those of the search, "alternatives" other types of weights.
    """
    counter = TokenCounter(params, device) if count else None

    def count_of(part: Part, measurement: Measurement, texts_alone: bool = False) -> TokenCount:
        if counter is not None:
            return counter(part, measurement, texts_alone)
        corpora = params.corpora.model_copy(update={"questions": {}}) if texts_alone else params.corpora
        return estimated(corpora, part, measurement, batch_tokens)

    final, others = params.export.measurement, params.export.alternatives
    fewer = final if others is None else final.model_copy(update={"windows": others.windows})

    return {
        "pair": count_of("selection", params.evaluate.measurement),
        "finalist": count_of("selection", params.search.measurement),
        "final table": count_of("report", final),
        "steps": count_of("report", final, texts_alone=True),
        "alternatives": count_of("report", fewer, texts_alone=True),
    }
