"""The evaluator: what a key depends on, and that nothing is measured twice or differently."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.architecture import Architecture, LayerWidth
from stages.config.params import Measurement
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH, Evaluator
from stages.evaluate.measure.executors import Local
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.prefix import SharedPrefix
from stages.evaluate.network.repair import NOTHING_REPAIRED
from stages.evaluate.network.weights import PrunedWeights
from stages.evaluate.results.errors import standard_error
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.text.corpora import Corpus, Document, Question
from stages.evaluate.text.selection import Selection, select
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder

MEASUREMENT = Measurement(
    protocol="standard",
    sequence_length=16,
    stride=None,
    join=None,
    bos=None,
    windows=3,
    questions=4,
    question_tokens=300,
    question_formats=["likelihood", "letter"],
)
TEXTS = {
    "fables": "A crow, half dead with thirst, came upon a pitcher which had once been full of water.",
    "news": "Shares fell on Monday as investors weighed the cost of oil, the price of grain and € 3.",
}
QUESTIONS = tuple(
    Question(f"q{n}", "anatomy", f"Which bone is number {n}?", ("tibia", "the ulna", "rib", f"no {n}"), n % 4)
    for n in range(6)
)
MIXED = Architecture.from_json([[2, 3, 64], [1, 2, 33], [2, 1, 0], [0, 0, 5]])


def corpus(name: str, *items: Any) -> Corpus[Any]:
    other = tuple(items[:1])
    parts = {"calibration": other, "selection": tuple(items), "report": (*items[1:], *items[:1])}
    return Corpus(name, "made up", parts, len(items), len(items), "")  # type: ignore[arg-type]


def texts(**changes: str) -> dict[str, Corpus[Document]]:
    return {name: corpus(name, Document("d", text)) for name, text in (TEXTS | changes).items()}


def halved() -> dict[str, Corpus[Document]]:
    """The texts, each in two documents."""
    cut = {name: (Document("a", text[:30]), Document("b", text[30:])) for name, text in TEXTS.items()}
    return {name: corpus(name, *documents) for name, documents in cut.items()}


def questions(*items: Question) -> dict[str, Corpus[Question]]:
    return {"quiz": corpus("quiz", *(items or QUESTIONS))}


def selected(**changes: Any) -> Selection:
    settings: dict[str, Any] = {
        "texts": texts(),
        "questions": questions(),
        "part": "selection",
        "tokenizer": tiny.byte_tokenizer(),
        "measurement": MEASUREMENT,
        "context_tokens": 2048,
    }
    return select(**settings | changes)


def make(network: ElasticNetwork, **changes: Any) -> Evaluator:
    own = {name: changes.pop(name) for name in ("identity", "cache_bytes") if name in changes}
    settings: dict[str, Any] = {"identity": {"weights": "w", "unit_order": "o"}, "cache_bytes": 10**8}
    return Evaluator(network, NOTHING_REPAIRED, selected(**changes), **settings | own)


def run(
    evaluator: Evaluator, work: list[Work], journal: Journal, after: Callable[[Row], None]
) -> dict[str, Row]:
    return measure_all(evaluator, Local(), work, journal, after, "test")


@pytest.fixture(scope="module")
def network(tiny_folder: TinyFolder) -> ElasticNetwork:
    return tiny.elastic_of(tiny_folder("llama"))


def some_work(network: ElasticNetwork, count: int = 6) -> list[Work]:
    generator = torch.Generator().manual_seed(2)
    dense = network.shape.dense()
    work = [Work(dense, "dense")]
    for index in range(count - 1):
        first, last = (tiny.random_architecture(network.shape, generator).widths for _ in range(2))
        widths = (*(dense.widths if index % 2 else first)[:2], *last[2:])
        work.append(Work(Architecture(widths), "free"))
    return work


def ignore(_: Row) -> None:
    pass


# --- values ---------------------------------------------------------------------------------------


def test_metrics_are_those_of_transformers_and_means_of_their_samples(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    evaluator, model = make(tiny.elastic_of(folder)), tiny.reference(folder)
    tiny.mask_removed(model, tiny.network_of(folder).shape, MIXED)
    metrics, samples = evaluator.measure(MIXED)
    for name, text in TEXTS.items():
        ids = tiny.byte_tokenizer()(text, return_tensors="pt")["input_ids"][0, :48].view(3, 16)
        with torch.inference_mode():
            losses = [float(model(row[None], labels=row[None]).loss) for row in ids]
        assert samples[f"log_ppl.{name}"] == pytest.approx(losses, rel=1e-5)
        assert metrics[f"ppl.{name}"] == pytest.approx(math.exp(statistics.fmean(losses)), rel=1e-5)
    assert metrics.keys() == {
        *(f"{kind}.{name}" for kind in ("ppl", "log_ppl", "bpb") for name in TEXTS),
        *("quiz.accuracy", "quiz.accuracy_norm", "quiz.log_likelihood"),
        *("quiz.letter.accuracy", "quiz.letter.log_likelihood"),
    }
    assert samples.keys() == metrics.keys() - {f"{kind}.{name}" for kind in ("ppl", "bpb") for name in TEXTS}
    for name, values in samples.items():
        assert metrics[name] == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert len(samples["quiz.accuracy"]) == len(samples["quiz.letter.accuracy"]) == 4


def test_values_depend_on_neither_order_nor_cache(network: ElasticNetwork, tmp_path: Path) -> None:
    work = some_work(network, 8)
    found = []
    for index, (cache, seed) in enumerate(((0, 0), (5_000, 1), (40_000, 2), (10**9, 3))):
        shuffled = random.Random(seed).sample(work, len(work))
        with Journal(tmp_path / f"{index}.jsonl") as journal:
            rows = run(make(network, cache_bytes=cache), shuffled, journal, ignore)
        found.append({key: (row.key, row.metrics, row.samples) for key, row in rows.items()})
    assert found[0].keys() == {w.architecture.id for w in work}
    assert all(other == found[0] for other in found[1:])
    alone = {w.architecture.id: make(network).measure(w.architecture) for w in work}
    assert {key: (metrics, samples) for key, (_, metrics, samples) in found[0].items()} == alone


def test_a_row_says_what_it_is(network: ElasticNetwork, tmp_path: Path) -> None:
    evaluator = make(network)
    with Journal(tmp_path / "journal.jsonl") as journal:
        rows = run(evaluator, [Work(MIXED, "free")], journal, ignore)
        assert list(journal) == [*rows.values()]
    (row,) = rows.values()
    assert (row.architecture, row.design, row.context) == (MIXED, "free", evaluator.digest)
    assert row.key == evaluator.key(MIXED)
    kept, dense = (a.kept_parameters(network.shape) for a in (MIXED, network.shape.dense()))
    assert row.overall_ratio == pytest.approx(1 - kept / dense)
    assert row.seconds >= 0
    assert "+00:00" in row.measured_at


# --- resuming -------------------------------------------------------------------------------------


def measured_architectures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    measured: list[str] = []
    original = Evaluator.measure

    def spy(self: Evaluator, architecture: Architecture, *arguments: Any) -> Any:
        measured.append(architecture.id)
        return original(self, architecture, *arguments)

    monkeypatch.setattr(Evaluator, "measure", spy)
    return measured


def test_measuring_resumes_and_repeats_nothing(
    network: ElasticNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measured_architectures(monkeypatch)
    path, work = tmp_path / "journal.jsonl", some_work(network)
    ids = [w.architecture.id for w in work]

    def killed(row: Row) -> None:
        seen.append(row.architecture.id)
        if len(seen) == 3:
            raise KeyboardInterrupt

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), Journal(path) as journal:
        run(make(network), work, journal, killed)
    assert seen == measured
    assert len(measured) == 3

    after: list[Row] = []
    with Journal(path) as journal:
        rows = run(make(network), [*work, work[0]], journal, after.append)
    assert sorted(measured) == sorted(ids)
    assert sorted(row.architecture.id for row in after) == sorted(ids)  # old and new, each once
    assert {row.architecture.id for row in after[:3]} == set(seen)
    assert rows.keys() == set(ids)
    assert len(path.read_text().splitlines()) == len(work)

    before, after = path.read_bytes(), []
    with Journal(path) as journal:
        again = run(make(network), work, journal, after.append)
    assert len(measured) == len(work)
    assert again == rows
    assert len(after) == len(work)
    assert path.read_bytes() == before


def test_rows_of_another_context_are_not_taken(
    network: ElasticNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measured_architectures(monkeypatch)
    work = some_work(network, 3)
    with Journal(tmp_path / "journal.jsonl") as journal:
        one = run(make(network), work, journal, ignore)
        other = run(make(network, part="report"), work, journal, ignore)
        assert len(measured) == 6
        assert len(journal.rows) == 6
        assert run(make(network), work, journal, ignore) == one
        assert run(make(network, part="report"), work, journal, ignore) == other
    assert len(measured) == 6


def test_nothing_to_do_is_nothing_done(network: ElasticNetwork, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert run(make(network), [], journal, ignore) == {}


# --- keys -----------------------------------------------------------------------------------------


def keys(evaluator: Evaluator) -> tuple[str, str]:
    return evaluator.key(evaluator.network.shape.dense()), evaluator.key(MIXED)


def test_keys_repeat_and_differ_by_architecture(network: ElasticNetwork) -> None:
    first, second = keys(make(network))
    assert first != second
    assert keys(make(network)) == (first, second)
    assert keys(make(network, cache_bytes=0)) == (first, second)


CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"identity": {"weights": "other", "unit_order": "o"}},
    "order of units": {"identity": {"weights": "w", "unit_order": "other"}},
    "text": {"texts": texts(news=TEXTS["news"].replace("Mon", "Sun"))},
    "name of a text": {"texts": {"stories" if n == "news" else n: c for n, c in texts().items()}},
    "a text fewer": {"texts": {"fables": texts()["fables"]}},
    "window length": {"measurement": MEASUREMENT.model_copy(update={"sequence_length": 15})},
    "windows": {"measurement": MEASUREMENT.model_copy(update={"windows": 2})},
    "question count": {"measurement": MEASUREMENT.model_copy(update={"questions": 3})},
    "no questions": {"questions": {}},
    "a choice": {"questions": questions(replace(QUESTIONS[0], choices=("a", "b", "c", "d")), *QUESTIONS[1:])},
    "one format": {"measurement": MEASUREMENT.model_copy(update={"question_formats": ["likelihood"]})},
    "join": {"texts": halved(), "measurement": MEASUREMENT.model_copy(update={"join": " "})},
    "stride": {"measurement": MEASUREMENT.model_copy(update={"stride": 8})},
    "BOS": {"measurement": MEASUREMENT.model_copy(update={"bos": "window"})},
    "protocol's name": {"measurement": MEASUREMENT.model_copy(update={"protocol": "llm-pruner"})},
    "a right answer": {"questions": questions(replace(QUESTIONS[0], answer=3), *QUESTIONS[1:])},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_decides_a_value_decides_its_key(network: ElasticNetwork, change: dict[str, Any]) -> None:
    assert not set(keys(make(network))) & set(keys(make(network, **change)))


def test_the_part_decides_the_key_even_of_equal_text(network: ElasticNetwork) -> None:
    assert make(network).key(MIXED) != make(network, part="report").key(MIXED)


@pytest.mark.parametrize("times", [1, 3])
def test_a_memory_that_ends_halves_the_batches_and_moves_no_value(
    network: ElasticNetwork,
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = make(network).measure(MIXED)
    evaluator, left = make(network), times
    original, key = SharedPrefix.log_likelihoods, evaluator.key(MIXED)

    def ends(self: SharedPrefix, *arguments: Any) -> list[torch.Tensor]:
        nonlocal left
        left -= 1
        if left >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, *arguments)

    monkeypatch.setattr(SharedPrefix, "log_likelihoods", ends)
    found = evaluator.measure(MIXED)
    assert evaluator.key(MIXED) == key
    with Journal(tmp_path / "journal.jsonl") as journal:
        dense = network.shape.dense()
        assert len(run(evaluator, [Work(MIXED, "any"), Work(dense, "dense")], journal, ignore)) == 2
    assert capsys.readouterr().out == "The GPU's memory ended (CUDA out of memory): batches are halved\n"
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert {name: pytest.approx(values, rel=1e-5) for name, values in found[1].items()} == expected[1]


def test_a_memory_that_holds_no_weights_of_their_own_is_told_and_not_tried_again(
    network: ElasticNetwork,
) -> None:
    asked = []

    def ends(_: torch.dtype) -> Any:
        asked.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    own = PrunedWeights(MIXED, ({}, {}), ends)
    with pytest.raises(InputError, match=r"weights of an architecture's own.*\(CUDA out of memory\)"):
        make(network).measure(MIXED, weights=own)
    assert asked == [1]


def test_a_memory_that_holds_no_sequence_is_told(
    network: ElasticNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(SharedPrefix, "log_likelihoods", ends)
    with pytest.raises(InputError, match=r"does not hold one sequence.*evaluate\.gpu_memory_gib"):
        make(network).measure(MIXED)


def test_two_weightings_of_one_architecture_are_told_apart(network: ElasticNetwork, tmp_path: Path) -> None:
    evaluator = make(network)
    cut = PrunedWeights(MIXED, ({"cut": "a"},), lambda dtype: network.sliced_state(MIXED, dtype=dtype))
    state = {name: 1.1 * tensor for name, tensor in network.sliced_state(MIXED).items()}
    louder = cut.then({"louder": 1.1}, lambda dtype: state)
    path = tmp_path / "journal.jsonl"
    rows: list[Row] = []
    for weights in (None, cut, louder, louder):
        with Journal(path) as journal:
            rows += run(evaluator, [Work(MIXED, "any", weights)], journal, ignore).values()
    assert [row.weights for row in rows] == ["", cut.digest, louder.digest, louder.digest]
    assert len({row.key for row in rows}) == len(path.read_text().splitlines()) == 3
    view, same, other, _ = (row.samples["log_ppl.news"] for row in rows)
    assert same == pytest.approx(view, rel=1e-5)
    assert other != pytest.approx(view, rel=1e-3)


def test_arithmetic_decides_the_key(tiny_folder: TinyFolder) -> None:
    in_float, in_bfloat = (
        make(tiny.elastic_of(tiny_folder("llama"), dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    assert in_float.key(MIXED) != in_bfloat.key(MIXED)
    assert in_float.measure(MIXED) != in_bfloat.measure(MIXED)


def test_grouping_of_batches_is_fixed_a_device() -> None:
    """It decides last digits: a change of it raises the version of measured values."""
    assert TOKENS_PER_BATCH["cpu"] == 1024


# --- errors of means ------------------------------------------------------------------------------


def test_standard_error() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    mean = sum(values) / 4
    expected = math.sqrt(sum((v - mean) ** 2 for v in values) / 3 / 4)
    assert standard_error(values) == pytest.approx(expected)
    assert math.isnan(standard_error([1.0]))
    assert math.isnan(standard_error([]))


def test_a_dropped_everything_still_has_a_value(network: ElasticNetwork) -> None:
    nothing = Architecture((LayerWidth(0, 0, 0),) * network.shape.layers)
    metrics, _ = make(network).measure(nothing)
    assert all(math.isfinite(value) for value in metrics.values())
