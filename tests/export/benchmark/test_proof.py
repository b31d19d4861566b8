"""The proof compares what was exported, and its ideals and agreements are right."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from stages.architecture import Architecture
from stages.config.params import PARTS
from stages.evaluate.network import checkpoint
from stages.evaluate.results import context
from stages.evaluate.results.context import Context
from stages.export.benchmark import comparison, proof, speed
from stages.export.benchmark.comparison import Comparison, Conditions, Proof, Spread
from stages.export.benchmark.runtimes import PyTorch, has_llama_cpp
from stages.export.benchmark.speed import Load, bytes_a_token, kl
from stages.export.gguf import folder as gguf_folder
from stages.export.gguf.writer import write_file
from stages.export.report import proof_tables
from stages.export.weights import huggingface
from stages.files import InputError
from stages.flops import prompt_flops
from stages.search import outcome
from stages.search.outcome import Candidate
from tests import tiny
from tests.export.deployable import (
    EVERY_CASE,
    SIZES,
    TEXT,
    UNIFORM,
    VOCABULARY,
    folder_of,
    pruned_model,
    trained_tokenizer,
)
from tests.small import PARAMS, SMOLLM2

WINDOWS = tiny.random_tokens(2, 40, vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model, and its export pruned to EVERY_CASE."""
    root = tmp_path_factory.mktemp("proof")
    tiny.random_model("llama", 0, **SIZES).save_pretrained(root / "dense")
    trained_tokenizer().save_pretrained(root / "dense")
    loaded = tiny.load(root / "dense")
    state = tiny.network_of(root / "dense").sliced_state(EVERY_CASE)
    huggingface.write_folder(
        root / "export" / "model", state, loaded.config, EVERY_CASE, loaded.shape, None, None, torch.float32
    )
    gguf_folder.write_folder(
        root / "export" / "gguf", tiny.source_of(root / "dense"), loaded, state, EVERY_CASE, ["Q8_0"]
    )
    return root / "dense", root / "export"


@pytest.fixture(scope="module")
def proven(exported: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Proof:
    dense, export = exported
    load = Load(list(range(4, 34)), [5, 6, 7], 2, WINDOWS, "llamas", 1)
    scratch = tmp_path_factory.mktemp("scratch") / "dense"
    made = proof.prove(tiny.source_of(dense), tiny.load(dense), export, EVERY_CASE, load, scratch)
    assert not scratch.exists()
    return made


@pytest.fixture(scope="module")
def found(proven: Proof) -> Sequence[Comparison]:
    return proven.comparisons


def perplexity(folder: Path) -> float:
    model = tiny.reference(folder) if folder.name == "dense" else PyTorch(folder, 1).model
    with torch.inference_mode():
        logits = model(WINDOWS).logits
    return math.exp(float(F.cross_entropy(logits[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten())))


def test_each_artifact_is_described(exported: tuple[Path, Path], found: Sequence[Comparison]) -> None:
    dense, export = exported
    shape = tiny.load(dense).shape
    first = found[0]
    assert (first.runtime, first.weights) == ("PyTorch", "float32")
    assert first.dense.parameters == shape.total_parameters
    written = speed.tensor_bytes(export / "model")
    assert first.pruned.parameters == sum(written.values()) / 4
    assert first.pruned.size_bytes == (export / "model" / "model.safetensors").stat().st_size
    assert first.dense.perplexity == pytest.approx(perplexity(dense), rel=1e-4)
    assert first.pruned.perplexity == pytest.approx(perplexity(export / "model"), rel=1e-4)
    assert first.dense.memory_bytes > 0
    assert (first.pruned.kl, first.pruned.logit_difference) == (0, 0)
    assert first.prefill_speedup.minimum <= first.prefill_speedup.median <= first.prefill_speedup.maximum
    kept = EVERY_CASE.kept_parameters(shape) + shape.hidden + shape.hidden * shape.vocabulary
    head = shape.hidden * shape.vocabulary
    assert first.ideal_decode == pytest.approx((shape.total_parameters - head) / kept)
    assert 1 < first.ideal_decode < first.ideal_prefill


def test_llama_cpp_is_measured_where_it_is_installed(proven: Proof, found: Sequence[Comparison]) -> None:
    if not has_llama_cpp():
        assert len(found) == 1
        assert "llama-cpp-python is not installed" in proven.remarks[0]
        return
    assert proven.remarks == ()
    assert [(c.runtime, c.weights) for c in found[1:]] == [("llama.cpp", "Q8_0")]
    assert 0 < found[1].pruned.kl < 0.1
    assert 0 < found[1].pruned.logit_difference < 2
    assert found[1].pruned.perplexity == pytest.approx(found[0].pruned.perplexity, rel=0.1)


def test_table_and_file(proven: Proof, found: Sequence[Comparison], tmp_path: Path) -> None:
    text = comparison.table(found)
    assert f"| PyTorch float32 | pruned | {found[0].pruned.parameters / 1e6:.1f} M |" in text
    share = found[0].decode_speedup.median / found[0].ideal_decode
    assert f"{found[0].ideal_decode:.3f} | {share:.2f} |" in text
    comparison.write(tmp_path / "proof.json", proven)
    document = json.loads((tmp_path / "proof.json").read_text())
    assert document["schema"] == "prunecast.proof"
    conditions = document["conditions"]
    assert (conditions["windows"], conditions["window_tokens"], conditions["text"]) == (2, 40, "llamas")
    assert (conditions["prompt"], conditions["continuation"], conditions["rounds"]) == (30, 3, 2)
    assert conditions["threads"] == 1
    row = document["comparisons"][0]
    assert row["pruned"]["prefill"]["median"] == found[0].pruned.prefill.median


@pytest.mark.parametrize("missing", ["no file", "not installed", "does not load"])
def test_what_was_not_measured_is_said(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """And does not stop the rest: here nothing is timed but PyTorch."""
    dense, export = tmp_path / "dense", tmp_path / "export"
    dense.symlink_to(exported[0])
    shutil.copytree(exported[1], export)

    def refuse(runtime: str, weights: str, *_: Any) -> Comparison:
        if runtime == "llama.cpp":
            raise ValueError("Failed to load model from file")
        return comparison_of(1.0, 1.0, weights)

    monkeypatch.setattr(proof, "compare", refuse)
    monkeypatch.setattr(proof, "has_llama_cpp", lambda: missing != "not installed")
    if missing == "no file":
        (export / "gguf" / "model-Q8_0.gguf").unlink()
    load = Load([4], [5], 1, WINDOWS, "llamas", 1)
    made = proof.prove(
        tiny.source_of(dense), tiny.load(dense), export, EVERY_CASE, load, tmp_path / "scratch"
    )
    assert [c.runtime for c in made.comparisons] == ["PyTorch"]
    expected = {
        "no file": "no GGUF file was exported",
        "not installed": "llama-cpp-python is not installed (pip install '.[llama-cpp]')",
        "does not load": "llama.cpp, Q8_0 was not measured: Failed to load model",
    }
    assert expected[missing] in " ".join(made.remarks)
    assert len(made.remarks) == 1


def comparison_of(prefill: float, decode: float, weights: str, kl: float = 0.0) -> Comparison:
    """Dense at 100 and 10 tokens a second, the pruned model so many times as fast; ideals of 1.25 and 2."""

    def figures(size: int, times: tuple[float, float], perplexity: float, kl: float) -> comparison.Figures:
        bases = (100 * times[0], 10 * times[1])
        speeds = [Spread.of([0.9 * base, base, 1.1 * base]) for base in bases]
        return comparison.Figures(size, 4 * size, 5 * size, speeds[0], speeds[1], perplexity, kl, 0.01)

    return Comparison(
        "PyTorch" if weights == "float32" else "llama.cpp", weights,
        figures(200_000_000, (1, 1), 20.0, 0.0), figures(150_000_000, (prefill, decode), 25.0, kl),
        Spread.of([prefill - 0.1, prefill, prefill + 0.1]), Spread.of([decode - 0.1, decode, decode + 0.1]),
        1.25, 2.0,
    )  # fmt: skip


def test_a_file_that_computes_something_else_is_told() -> None:
    exact, bad, rounded = (
        comparison_of(1, 1, w, kl) for w, kl in (("float32", 0), ("F16", 2e-4), ("Q8_0", 1.0))
    )
    assert proof._suspicious([exact, rounded]) == []
    (remark,) = proof._suspicious([exact, bad, rounded])
    assert "The F16 file differs from the folder by 2.0e-04 nats a token" in remark
    assert len(proof._suspicious([exact, comparison_of(1, 1, "F16", math.nan)])) == 1


def test_what_the_report_and_the_card_print() -> None:
    conditions = Conditions(512, 16, 3, 2, 128, "news", 1, "x86_64", 40)
    shown = Proof((comparison_of(1.2, 1.5, "float32"), comparison_of(1.25, 2, "F16", 3e-6)), conditions)
    torch_, llama = proof_tables.proof_tables(shown)
    rows = dict(torch_.rows)
    assert [value for value, _ in rows["dense"]] == [
        "200.0 M", "800.0 MB", "1,000 MB", "100", "10", "20.00", "–",
    ]  # fmt: skip
    assert rows["pruned"][3] == ("120", "108 to 132")
    against, shares = rows["compared"], rows["of the ideal"]
    assert [value for value, _ in against[:3]] == ["−25.0 %"] * 3
    assert (against[3], shares[3]) == (("1.20 times as fast", "1.10 to 1.30"), ("96 %", "of 1.25 times"))
    assert (against[4], shares[4]) == (("1.50 times as fast", "1.40 to 1.60"), ("75 %", "of 2.00 times"))
    assert against[5][0] == "+25.0 %"
    assert {len(cells) for _, cells in torch_.rows} == {len(proof_tables.COLUMNS)}
    assert dict(llama.rows)["pruned"][6] == ("3.0e-06 nats", "logits within 0.01")
    card = proof_tables.card(shown)
    assert (
        "| PyTorch, float32 | 800 → 600 MB | 1,000 → 750 MB | 1.20 times as fast (1.10 to 1.30) | 96 % "
        "| 1.50 times as fast (1.40 to 1.60) | 75 % |"
    ) in card
    assert "2 windows of 128 tokens of news. Took 40 s." in card
    assert proof_tables.card(Proof(remarks=("nothing",))) == ""
    flat = comparison.flat(shown)
    assert flat["proof.pytorch_float32.prefill_share_of_ideal"] == pytest.approx(0.96)
    assert flat["proof.llama_cpp_f16.decode_speedup"] == 2


def test_another_architecture_than_the_exported_one_is_refused(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    dense, export = exported
    load = Load([4], [5], 1, WINDOWS, "llamas", 1)
    with pytest.raises(InputError, match="Run `dvc repro` to export"):
        proof.prove(tiny.source_of(dense), tiny.load(dense), export, UNIFORM, load, tmp_path)


def test_the_command_reads_what_the_pipeline_wrote(
    exported: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense, export = exported
    shutil.copytree(export, tmp_path / "data" / "export")
    winner = Candidate(outcome.WINNER, EVERY_CASE, 0.5, {}, {}, 1.0)
    outcome.write(tmp_path / "data" / "search" / "outcome.json", [winner])
    weights = checkpoint.digest_of(tiny.source_of(dense))
    searched = Context("digest", {"measurement": {"question_formats": []}, "weights": weights})
    context.write(tmp_path / "data" / "search" / "context.json", searched)
    for part in PARTS:
        (tmp_path / f"{part}.txt").write_text((TEXT * 8).replace("l", part))
    content = yaml.safe_load(PARAMS.read_text())
    content["model"]["source"] = str(dense)
    content["corpora"]["texts"] = {"llamas": {part: f"{part}.txt" for part in PARTS}}
    content["search"]["objective"] = {"log_ppl.llamas": 1.0}
    content["export"]["measurement"]["sequence_length"] = 50
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "peak_memory", lambda *_: 1000)
    before = {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()}
    arguments = ["--prompt", "20", "--continuation", "3", "--rounds", "1", "--windows", "2"]
    arguments += ["--threads", "1", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["proof", *arguments])
    proof.main()
    assert "| PyTorch float32 | pruned |" in capsys.readouterr().out
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["conditions"]["window_tokens"] == 50
    assert written["conditions"]["text"] == "llamas"
    assert written["comparisons"][0]["pruned"]["memory_bytes"] == 1000
    assert {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()} == before
    monkeypatch.setattr(sys, "argv", ["proof", "--windows", "1000"])
    with pytest.raises(InputError, match="Lower windows or sequence_length"):
        proof.main()
    monkeypatch.setattr(sys, "argv", ["proof", "--prompt", "510", "--continuation", "3"])
    expected = "prompt and continuation are 513 tokens together; expected at most the 512"
    with pytest.raises(InputError, match=expected):
        proof.main()


def test_ideals_of_smollm2_by_hand() -> None:
    """Half of the MLPs gone; everything counted by hand from the model's sizes."""
    pruned = Architecture.from_json([[3, 3, 768]] * 30)
    attention, mlp, head = 576 * (2 * 576 + 2 * 192) + 576, 3 * 576 * 1536 + 576, 49152 * 576
    mixing = 30 * 9 * 64 * 2 * 512**2
    dense = 512 * 2 * 30 * (attention + mlp) + mixing + 2 * head
    assert prompt_flops(SMOLLM2, SMOLLM2.dense().widths, 512) == dense
    assert prompt_flops(SMOLLM2, pruned.widths, 512) == dense - 512 * 2 * 30 * 3 * 576 * 768


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_embedding_that_is_no_head_is_not_read(tmp_path: Path, tied: bool) -> None:
    model = pruned_model(tmp_path, UNIFORM, tie_word_embeddings=tied)
    write_file(tmp_path / "model.gguf", model, "Q8_0")
    folder = folder_of(tmp_path, model)
    everything = sum(t.numel() for t in model.state.values())
    embedding = 0 if tied else 96 * VOCABULARY
    assert bytes_a_token(folder, model.shape) == 4 * (everything - embedding)
    vectors = sum(t.numel() for t in model.state.values() if t.dim() == 1)
    quantised = (everything - vectors - embedding) // 32 * 34  # 32 bytes and a scale of 2
    assert bytes_a_token(tmp_path / "model.gguf", model.shape) == quantised + 4 * vectors


def test_kl_of_two_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert kl(p.log() + 3, q.log() - 1) == pytest.approx(expected)
    assert kl(p.log().repeat(130, 1), q.log().repeat(130, 1)) == pytest.approx(expected)


class Recorder:
    """A runtime that writes down what it is asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def prefill(self, tokens: Sequence[int]) -> None:
        self.log.append(f"{self.name} prefill {len(tokens)}")

    def decode(self, tokens: Sequence[int]) -> None:
        self.log.append(f"{self.name} decode {len(tokens)}")

    def logits(self, tokens: Sequence[int]) -> Tensor:
        raise AssertionError("not while timing")


def test_models_take_turns_and_the_first_round_does_not_count() -> None:
    log: list[str] = []
    models = [Recorder("dense", log), Recorder("pruned", log)]
    prefill, decode = speed._times(models, Load([1, 2, 3], [4, 5], 3, WINDOWS, "llamas", 1))
    turn = ["dense prefill 3", "dense decode 2", "pruned prefill 3", "pruned decode 2"]
    assert log == turn * 4
    assert [len(times) for times in (*prefill, *decode)] == [3] * 4


def test_the_cache_continues_the_prompt(tmp_path: Path) -> None:
    """Decoding after a prefill reads what the whole sequence at once would."""
    runtime = PyTorch(folder_of(tmp_path, pruned_model(tmp_path, EVERY_CASE)), 1)
    tokens = WINDOWS[0].tolist()
    runtime.prefill(tokens[:30])
    seen: list[Any] = []
    forward = runtime.model.forward

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(forward(*args, **options))
        return seen[-1]

    runtime.model.forward = watched
    runtime.decode(tokens[30:])
    runtime.model.forward = forward
    stepwise = torch.cat([out.logits[0] for out in seen])
    torch.testing.assert_close(stepwise, runtime.logits(tokens)[30:], rtol=1e-4, atol=1e-4)


def test_spread() -> None:
    assert Spread.of([3, 1, 2]) == Spread(1, 2, 3)
    assert str(Spread.of([1234.56, 1, 2])) == "2 (1 to 1235)"
