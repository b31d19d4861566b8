"""Recovery on a tiny model: it learns, is kept, goes on after a kill, and never sees what it must not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from stages.architecture import Architecture, LayerWidth
from stages.config.params import Bos, load_params
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.weights import PrunedNetwork, PrunedWeights
from stages.evaluate.workbench import Workbench, calibration_windows, open_workbench
from stages.files import InputError
from stages.recovery import recovery
from stages.recovery.local import local_loss, states_of
from stages.recovery.needs import require_room
from stages.recovery.recovered import Recovered
from stages.recovery.recovery import learning_rate, recovered, tried
from stages.recovery.student import quantised, state_now, student_of
from stages.recovery.text import _at_once, training_text
from stages.recovery.trainer import RecoveryTrainer
from stages.recovery.training import Training
from stages.sample import designs
from stages.tracking.records import Numbers
from tests.faults.world import World
from tests.small import LLAMA2_7B, SMOLLM2

RECOVERY = {
    "method": "distill", "text": "calibration", "tokens": 100_000, "passes": 4, "local": 0,
    "sequence_length": 32, "tokens_per_step": 256, "learning_rate": 5e-4, "rank": 4, "checkpoints": 4,
    "baselines": False, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    world = World.make(tmp_path_factory.mktemp("recovery") / "world")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(world.folder)
        monkeypatch.setenv("PRUNECAST_CACHE", str(world.folder / "cache"))
        yield open_workbench(load_params(Path("params.yaml")), Path())


def asking(bench: Workbench, **changes: Any) -> Workbench:
    section = type(bench.params.export.recovery).model_validate(RECOVERY | changes)
    export = bench.params.export.model_copy(update={"recovery": section})
    return replace(bench, params=bench.params.model_copy(update={"export": export}))


def pruned(bench: Workbench) -> PrunedWeights:
    params, shape = bench.params, bench.checkpoint.shape
    return bench.weights(designs.uniform(shape, params.sample, params.budget, ()), again=False)


def recover(bench: Workbench, weights: PrunedWeights, tell: Any = lambda _: None) -> Recovered:
    section = bench.params.export.recovery
    return recovered(bench, section, weights, training_text(bench, section), tell)


def divergence_of(bench: Workbench, weights: PrunedWeights) -> float:
    """KL of predictions from the dense model's, on the text that is trained on."""
    dense = bench.network.shape.dense()
    tokens = training_text(bench, asking(bench).params.export.recovery).tokens[:64]
    whole = PrunedNetwork(dense, bench.weights(dense, again=False).make(torch.float32), bench.network)
    cut = PrunedNetwork(weights.architecture, weights.make(torch.float32), bench.network)
    log_p, log_q = (network.logits_of(tokens).log_softmax(-1) for network in (whole, cut))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("method", ["distill", "full", "lora"])
def test_it_brings_the_pruned_model_nearer_to_the_dense_one_and_is_trained_once(
    bench: Workbench, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = 5e-3 if method == "lora" else 5e-4  # adapters begin at nothing
    asked, before = asking(bench, method=method, learning_rate=rate), pruned(bench)
    points: list[Numbers] = []
    found = recover(asked, before, points.append)
    if method != "full":  # random weights write what no text says
        assert divergence_of(bench, found.weights) < 0.9 * divergence_of(bench, before)
    assert found.weights.digest != before.digest
    objectives = [point["objective"] for point in points if "objective" in point]
    assert len(objectives) >= 5  # before, and four times on the way
    assert {"tokens", "loss", "learning_rate", "tokens_per_second"} <= {
        name for point in points for name in point
    }
    assert "Recovery: " in capsys.readouterr().out
    monkeypatch.setattr(recovery, "Training", None)  # would fail
    again = recover(asked, before)
    assert again.weights.digest == found.weights.digest
    for name, tensor in again.weights.make(torch.float32).items():
        torch.testing.assert_close(tensor, found.weights.make(torch.float32)[name], rtol=0, atol=0)


def test_in_the_local_stage_each_sublayer_learns_what_the_dense_one_adds(
    bench: Workbench, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, before = asking(bench, local=0.5, passes=8), pruned(bench)
    points: list[Numbers] = []
    after = recover(asked, before, points.append)
    tokens = {name: [p["tokens"] for p in points if name in p] for name in ("local_loss", "loss")}
    assert max(tokens["local_loss"]) < min(tokens["loss"])
    assert len(tokens["local_loss"]) == pytest.approx(len(tokens["loss"]), rel=0.1)
    local = [point["local_loss"] for point in points if "local_loss" in point]
    assert sum(local[-5:]) < 0.9 * sum(local[:5])
    assert divergence_of(bench, after.weights) < divergence_of(bench, before)
    assert "50 % of the steps each sublayer" in after.words
    assert len(after.curve.loss) == len(tokens["loss"])


def test_the_local_loss_is_that_of_sublayers_apart_and_nothing_where_nothing_is_cut(bench: Workbench) -> None:
    shape, tokens = bench.checkpoint.shape, bench.calibration.batches[0].tokens[:2]
    states = states_of(bench.network, tokens)

    def loss_of(weights: PrunedWeights) -> Tensor:
        student = student_of(bench.checkpoint, weights, torch.float32, torch.device("cpu"))
        with torch.inference_mode(False), torch.enable_grad():
            found = local_loss(student.model, tokens, states, bench.network.recipe)
            if found.requires_grad and found > 1e-6:
                found.backward()
                assert student.model.norm.weight.grad is None  # learns in the end alone
        return found.detach()

    assert loss_of(bench.weights(shape.dense(), again=False)) < 1e-9
    weights = pruned(bench)
    cut = PrunedNetwork(weights.architecture, weights.make(torch.float32), bench.network)
    errors, batch = [], Batch.unasked(tokens)
    with torch.inference_mode():
        for site, (before, after) in states.items():
            width = weights.architecture.widths[site.layer]
            x = cut.activations(site, width, before, cut.places(batch))
            ours = cut.output(site, width, x, onto=before)
            errors.append(((ours - after) ** 2).sum() / ((after - before) ** 2).sum())
    torch.testing.assert_close(loss_of(weights), torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)
    gone = Architecture((LayerWidth(0, 0, 0), *weights.architecture.widths[1:]))
    assert 0 < loss_of(bench.weights(gone, again=False)) < loss_of(weights) * 1.5


def test_what_is_only_tried_is_the_same_and_not_kept(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, before = asking(bench, passes=1), pruned(bench)
    section = asked.params.export.recovery
    monkeypatch.setenv("PRUNECAST_CACHE", str(Path("tries")))
    found = tried(asked, section, before, training_text(asked, section))
    assert not list(Path("tries").rglob("*"))  # nothing is trained before it is asked for
    weights = found.make(torch.float32)
    assert not [path for path in Path("tries").rglob("*") if path.is_file()]
    kept = recover(asked, before).weights
    assert found.digest == kept.digest
    for name, tensor in kept.make(torch.float32).items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_the_student_computes_what_the_pruned_network_does(bench: Workbench) -> None:
    weights = pruned(bench)
    tokens = bench.calibration.batches[0].tokens[:2]
    student = student_of(bench.checkpoint, weights, torch.float32, torch.device("cpu"))
    network = PrunedNetwork(weights.architecture, weights.make(torch.float32), bench.network)
    with torch.inference_mode():
        torch.testing.assert_close(student(tokens).logits, network.logits_of(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_four_bits", [False, True])
def test_merged_adapters_are_the_model_that_was_trained(bench: Workbench, in_four_bits: bool) -> None:
    weights, tokens = pruned(bench), bench.calibration.batches[0].tokens[:2]
    student = student_of(bench.checkpoint, weights, torch.float32, torch.device("cpu"))
    if in_four_bits:
        student = quantised(student, torch.float32, torch.device("cpu"))
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    student = peft.get_peft_model(student, lora)
    merged = PrunedNetwork(weights.architecture, state_now(student), bench.network)
    with torch.inference_mode():
        torch.testing.assert_close(student(tokens).logits, merged.logits_of(tokens), rtol=1e-4, atol=1e-4)
        before = PrunedNetwork(weights.architecture, weights.make(torch.float32), bench.network)
        assert (student(tokens).logits - before.logits_of(tokens)).abs().max() > 0.1


def test_adapters_beside_four_bits_learn_and_all_weights_are_kept(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random weights quantising costs more than was pruned: it is the loss that falls."""
    asked, before = asking(bench, method="qlora", learning_rate=5e-3, passes=8), pruned(bench)
    monkeypatch.setattr(Training, "start", lambda self, measured: math.inf)
    points: list[Numbers] = []
    found = recover(asked, before, points.append).weights.make(torch.float32)
    losses = [point["loss"] for point in points if "loss" in point]
    assert sum(losses[-9:]) < 0.5 * sum(losses[:9])
    as_it_was = before.make(torch.float32)
    assert found.keys() == as_it_was.keys()
    trained = {name for name in found if not found[name].equal(as_it_was[name])}
    assert trained == {name for name in found if "_proj" in name}


def test_a_killed_training_goes_on_from_its_last_checkpoint(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, before = asking(bench, seed=1), pruned(bench)
    undisturbed = recover(asked, before).weights.make(torch.float32)

    class Killed(KeyboardInterrupt):
        pass

    steps: list[int] = []
    original = RecoveryTrainer.training_step

    def killing(self: Any, *arguments: Any, **rest: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) == 60:
            raise Killed
        return original(self, *arguments, **rest)

    monkeypatch.setenv("PRUNECAST_CACHE", str(Path("another")))
    with monkeypatch.context() as patched:
        patched.setattr(RecoveryTrainer, "training_step", killing)
        with pytest.raises(Killed):
            recover(asked, before)
    (cut_off,) = Path("another").glob("recovery/*/trainer")
    (cut_off / "checkpoint-100").mkdir()  # a kill while one is written
    found = recover(asked, before).weights.make(torch.float32)
    assert "going on from checkpoint-" in capsys.readouterr().out
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, undisturbed[name], rtol=1e-4, atol=1e-5)


def test_a_rate_that_is_too_high_is_told(bench: Workbench) -> None:
    with pytest.raises(InputError, match=r"the loss .*lower export\.recovery\.learning_rate"):
        recover(asking(bench, learning_rate=30.0), pruned(bench))


def test_no_paragraph_of_a_selection_or_report_part_is_trained_on(bench: Workbench, tmp_path: Path) -> None:
    """The text holds all of them, between documents of its own."""
    forbidden = [
        document.text
        for corpus in bench.texts.values()
        for part in ("selection", "report")
        for document in corpus.parts[part]
    ]
    own = [f"a paragraph of its own, number {index}, that nobody else has written" for index in range(80)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*own, *forbidden]))
    found = training_text(bench, asking(bench, text=str(path)).params.export.recovery)
    text = "".join(bench.checkpoint.tokenizer.batch_decode(found.tokens))
    assert "number 33" in text
    plain = " ".join(text.split())
    for document in forbidden:
        for paragraph in document.split("\n\n"):
            if len(paragraph) >= 40:
                assert " ".join(paragraph.split())[:60] not in plain


def test_what_the_dense_model_writes_is_kept_and_the_same_by_its_seed(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = asking(bench, text="written", tokens=2048).params.export.recovery
    first = training_text(bench, section)
    assert first.tokens.shape == (64, 32)
    with monkeypatch.context() as patched:
        patched.setattr("stages.recovery.text._write", None)  # would fail
        assert training_text(bench, section).digest == first.digest
        more = section.model_copy(update={"tokens": 1024})
        assert training_text(bench, more).tokens.equal(first.tokens[:32])
    other = training_text(bench, section.model_copy(update={"seed": 5}))
    assert other.digest != first.digest


def test_sources_give_all_that_they_have_and_the_dense_model_the_rest(bench: Workbench) -> None:
    section = asking(bench).params.export.recovery
    alone, both = (
        training_text(bench, section.model_copy(update={"text": text, "tokens": 10_000}))
        for text in ("calibration", ["written", "calibration"])
    )
    assert alone.tokens.numel() < 10_000 - 32 < both.tokens.numel() <= 10_000
    assert both.tokens[: len(alone.tokens)].equal(alone.tokens)
    assert both.words == f"{alone.words} and written by the dense model itself, seed 0"
    enough = section.model_copy(update={"text": ["calibration", "written"], "tokens": 2048})
    assert len(training_text(bench, enough).tokens) == 64
    assert "written" not in training_text(bench, enough).words


def test_a_large_model_writes_less_at_once() -> None:
    assert (_at_once(SMOLLM2, 512, 1024), _at_once(LLAMA2_7B, 512, 1024)) == (1024, 32)
    assert _at_once(LLAMA2_7B, 10**9, 1024) == 1


def test_a_text_too_short_for_a_step_is_told(bench: Workbench) -> None:
    with pytest.raises(InputError, match=r"tokens in sequences of 32, and a step takes 1,000,000"):
        training_text(bench, asking(bench, tokens_per_step=1_000_000).params.export.recovery)
    with pytest.raises(InputError, match=r"export\.recovery\.text: .*nowhere"):
        training_text(bench, asking(bench, text="nowhere.txt").params.export.recovery)


def test_a_gpu_that_is_too_small_is_told_before_anything_is_made() -> None:
    require_room("lora", 7 * 10**9, 20e9)
    with pytest.raises(
        InputError, match=r"distill takes 112\.0 GB .* 60\.0 GB free; set it to lora \(16\.1 GB\)"
    ):
        require_room("distill", 7 * 10**9, 60e9)
    with pytest.raises(InputError, match=r"lora takes 16\.1 GB .* free; set it to qlora \(6\.3 GB\)"):
        require_room("lora", 7 * 10**9, 10e9)
    with pytest.raises(InputError, match=r"qlora takes 6\.3 GB .*take a GPU with more memory"):
        require_room("qlora", 7 * 10**9, 5e9)


def test_adapters_begin_alike_by_their_seed(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("PRUNECAST_CACHE", str(Path(name)))
        torch.rand(3)
        found.append(
            recover(asking(bench, method="lora", passes=1), pruned(bench)).weights.make(torch.float32)
        )
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-6)


def test_the_learning_rate_falls_with_the_model_size() -> None:
    rates = [learning_rate(size) for size in (10**8, 10**9, 3 * 10**9, 7 * 10**9, 7 * 10**10)]
    assert rates == sorted(rates, reverse=True)
    assert rates == pytest.approx([3e-4, 3e-4, rates[2], 3e-5, 3e-5])


def test_where_measured_windows_begin_with_a_bos_calibration_and_training_do_too(bench: Workbench) -> None:
    evaluate = bench.params.evaluate
    measurement = evaluate.measurement.model_copy(update={"bos": "window"})
    params = bench.params.model_copy(
        update={"evaluate": evaluate.model_copy(update={"measurement": measurement})}
    )
    begun, bos = replace(bench, params=params), bench.checkpoint.tokenizer.bos_token_id
    section = asking(bench, text=["calibration", "written"]).params.export.recovery
    plain, found = training_text(bench, section).tokens, training_text(begun, section).tokens
    assert found.shape[1] == plain.shape[1] == section.sequence_length
    assert (found[:, 0] == bos).all()
    assert not (plain[:, 0] == bos).all()
    cases: tuple[tuple[Bos, bool], ...] = (("window", True), ("none", False))
    for how, wanted in cases:
        measured = replace(measurement.text, bos=how)
        rows = calibration_windows(bench.checkpoint, bench.texts, evaluate.calibration, measured)
        assert rows.shape == (evaluate.calibration.samples, evaluate.calibration.sequence_length)
        assert bool((rows[:, 0] == bos).all()) is wanted
