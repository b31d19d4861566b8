"""The plan's FLOPs against those that PyTorch counts while the elastic network runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from stages.architecture import Architecture, ModelShape, Site
from stages.config.params import Params
from stages.evaluate.calibrate import statistics
from stages.evaluate.calibrate.importance import taylor
from stages.evaluate.calibrate.whitening import elements, orders_of, prefix_size
from stages.evaluate.network.prefix import SharedPrefix, branch_depths, tree_order
from stages.evaluate.text import perplexity
from stages.plan import calibration_work, memory, workload
from stages.plan.machines import GPUS
from stages.plan.step import Step
from stages.plan.token_counts import TokenCount, estimated, token_counts
from tests import tiny
from tests.small import COMMITTED, SMOLLM2

ROWS, LENGTH = 4, 16
READING = TokenCount(ROWS, 0, 1, ROWS * LENGTH, ROWS * (LENGTH - 1), ROWS * LENGTH * LENGTH, exact=True)
"""Of four windows, every query meeting every key: what PyTorch counts, whatever the mask."""


def counted(run: Callable[[], Any]) -> float:
    uncounted = {  # by PyTorch itself
        torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q, k, v
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops())


@pytest.fixture
def network(tiny_folder: Callable[..., Path]) -> Any:
    return tiny.network_of(tiny_folder("llama"))


def batch() -> Any:
    (made,) = perplexity.batches(tiny.random_tokens(ROWS, LENGTH), ROWS * LENGTH)
    return made


@pytest.mark.parametrize("widths", [[[2, 3, 64]] * 4, tiny.MIXED.to_json(), tiny.HOLLOW.to_json()])
def test_flops_of_an_evaluation(network: Any, widths: list[list[int]]) -> None:
    architecture = Architecture.from_json(widths)
    found = counted(lambda: network.log_likelihoods(architecture, batch()))
    planned = workload.evaluation_flops(network.shape, architecture, READING)
    assert planned == pytest.approx(found, rel=0.02)  # the plan counts norms as weights


@pytest.mark.parametrize("cache_bytes", [0, 3 * ROWS * LENGTH * tiny.HIDDEN * 4, 2**20])
def test_flops_of_architectures_with_layers_in_common(network: Any, cache_bytes: int) -> None:
    generator = torch.Generator().manual_seed(3)
    dense = network.shape.dense().widths
    drawn = [tiny.random_architecture(network.shape, generator) for _ in range(12)]
    made = [Architecture((*dense[: i % 4], *a.widths[i % 4 :])) for i, a in enumerate(drawn)]

    def run() -> None:
        shared = SharedPrefix(network, [batch()], cache_bytes)
        ordered = tree_order(made)
        for architecture, branches in zip(ordered, branch_depths(ordered), strict=True):
            shared.log_likelihoods(architecture, branches)

    planned, _ = workload.measured_together(network.shape, made, READING, torch.float32, cache_bytes)
    assert planned == pytest.approx(counted(run), rel=0.02)
    apart = sum(workload.evaluation_flops(network.shape, a, READING) for a in made)
    assert (planned < 0.9 * apart) == bool(cache_bytes)


def test_statistics_take_what_the_plan_says(network: Any) -> None:
    gathered = dict(statistics.gather(network, [batch()]))
    assert sum(s.gram.nbytes for s in gathered.values()) == statistics.size_bytes(network.shape)


def test_a_repair_costs_what_it_takes(network: Any) -> None:
    """What `LeastSquares` multiplies and solves, once its sites are whitened."""
    moments = dict(statistics.gather(network, [batch()]))
    repair = tiny.repair_of(network.sorted(tiny.random_order(network.shape)), moments, 0.01)
    repair.prepare([tiny.MIXED])
    shape = network.shape
    planned = calibration_work.repair_flops(shape, tiny.MIXED)
    products = counted(lambda: [repair.projection(s, tiny.MIXED.widths[s.layer]) for s in cut(shape)])
    triangles = sum(shape.hidden * (elements(shape, s) - kept_of(shape, s)) ** 2 for s in cut(shape))
    assert planned - triangles == pytest.approx(products, rel=0.01)  # those the counter doesn't see


def kept_of(shape: ModelShape, site: Site) -> int:
    return prefix_size(shape, site.kind, tiny.MIXED.widths[site.layer].of(site.kind))


def cut(shape: ModelShape) -> list[Site]:
    return [s for s in shape.sites() if 0 < kept_of(shape, s) < elements(shape, s)]


def test_whitenings_take_what_is_planned(network: Any) -> None:
    gathered = dict(statistics.gather(network, [batch()]))
    repair = tiny.repair_of(network.sorted(tiny.random_order(network.shape)), gathered, 0.01)
    orders = [(site, heads) for site in gathered for heads in orders_of(network.shape, site)]
    found = sum(repair.whitening(*order).nbytes for order in orders)
    assert found == tiny.roomy(network.shape, COMMITTED.evaluate).whitenings


def plan_of(**changes: Any) -> list[Step]:
    search = COMMITTED.search.model_copy(update=changes)
    return steps_of(COMMITTED.model_copy(update={"search": search}))


def steps_of(loaded: Params) -> list[Step]:
    measured = token_counts(loaded, "cpu", 1024, count=False)
    return workload.steps(loaded, SMOLLM2, measured, torch.float32)


def evaluations(steps: list[Step]) -> list[int]:
    return [step.evaluations for step in steps if step.evaluations]


def test_evaluations_of_the_default() -> None:
    """27 pairs, 12 measurements in two rounds; three finalists, three baselines and two of the front.

    Then the final table, three steps of the search on texts alone, and two models in three types.
    """
    assert evaluations(plan_of()) == [27, 12, 8, 4, 3, 6]
    without = COMMITTED.export.model_copy(update={"answers": None, "alternatives": None})
    found = steps_of(COMMITTED.model_copy(update={"export": without}))
    assert evaluations(found) == [27, 12, 8, 4, 3]
    assert {s.what for s in plan_of()} - {s.what for s in found} == {
        "answer prompts",
        "measure other types of weights",
    }


def test_what_the_search_asks_for_is_in_the_plan() -> None:
    assert evaluations(plan_of(rounds=1, front=[0.2])) == [27, 6, 7, 4, 2, 6]
    same = COMMITTED.evaluate.measurement  # finalists measured as in the rounds are in the journal
    assert evaluations(plan_of(measurement=same, repair_again=False)) == [27, 12, 5, 4, 3, 6]
    assert evaluations(plan_of(measurement=same, repair_again=True)) == [27, 12, 8, 4, 3, 6]
    again = [step for step in plan_of(repair_again=True) if step.what == "repair finalists again"]
    assert again[0].flops > 0


def test_a_recovery_is_in_the_plan() -> None:
    def recovered(**changes: Any) -> dict[str, Step]:
        section = COMMITTED.export.recovery.model_copy(update=changes)
        export = COMMITTED.export.model_copy(update={"recovery": section})
        return {step.what: step for step in steps_of(COMMITTED.model_copy(update={"export": export}))}

    training, writing = "recover what was pruned", "the dense model writes text"
    assert not {training, writing} & recovered().keys()
    once = recovered(method="distill")
    assert once["measure the final table"].evaluations == 5
    twice = recovered(method="distill", tokens=2 * COMMITTED.export.recovery.tokens, baselines=True)
    assert twice["measure the final table"].evaluations == 7
    assert twice[writing].flops == pytest.approx(2 * once[writing].flops, rel=1e-3)
    assert twice[training].flops == pytest.approx(6 * once[training].flops, rel=1e-3)
    assert recovered(method="lora", text="calibration")[training].flops < once[training].flops
    assert writing not in recovered(method="full", text="calibration")
    tried = COMMITTED.export.recovery.model_copy(update={"method": "distill"})
    in_search = {step.what: step for step in plan_of(recovery=tried)}
    assert in_search[training].stage == "search"
    assert in_search[training].flops == pytest.approx(7 * once[training].flops, rel=1e-3)  # no dense one


def test_the_proof_of_speed_is_in_the_plan_where_it_is_asked_for() -> None:
    def seconds(proof: Any) -> list[float]:
        export = COMMITTED.export.model_copy(update={"proof": proof})
        loaded = COMMITTED.model_copy(update={"export": export})
        count = estimated(loaded.corpora, "report", export.measurement, 1024)
        measured = dict.fromkeys(("pair", "finalist", "final table", "steps", "alternatives"), count)
        found = workload.steps(loaded, SMOLLM2, measured, torch.float32)
        return [step.cpu_s for step in found if step.what.startswith("prove speed")]

    asked = COMMITTED.export.proof
    assert asked is not None
    assert 20 < seconds(asked)[0] < 45  # 26 s were measured on an idle machine
    assert seconds(asked.model_copy(update={"rounds": 9}))[0] > seconds(asked)[0] + 15
    assert seconds(None) == []


def test_conversations_are_in_the_plan_where_they_are_asked_for() -> None:
    def found(conversations: int, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
        section = COMMITTED.evaluate.calibration.model_copy(update={"conversations": conversations})
        evaluate = COMMITTED.evaluate.model_copy(update={"calibration": section})
        loaded = COMMITTED.model_copy(update={"evaluate": evaluate})
        count = estimated(loaded.corpora, "report", loaded.export.measurement, 1024)
        measured = dict.fromkeys(("pair", "finalist", "final table", "steps", "alternatives"), count)
        return {step.what: step for step in workload.steps(loaded, SMOLLM2, measured, dtype)}

    none, some, many = (found(count) for count in (0, 8, 80))
    write, score, answer = "write conversations", "score units by activation", "answer prompts"
    assert write not in none
    assert 6 < many[write].flops / some[write].flops < 10  # those that are held out are the same
    assert 50 < some[write].flops / 0.08e12 < 90  # 74 s on two cores of so many FLOP/s
    assert some[score].tokens - none[score].tokens == 8 * 512
    assert some[answer].flops > none[answer].flops
    assert many[write].cpu_s == 0 < found(8, torch.bfloat16)[write].cpu_s


def test_memory_of_the_taylor_pass_grows_by_the_states_of_its_tokens_alone() -> None:
    few, many = (taylor.held_bytes(SMOLLM2, tokens, 2048, 2) for tokens in (4096, 20480))
    assert many - few == (20480 - 4096) * 32 * 576 * 2  # of 30 layers, and those before and after
    evaluate = COMMITTED.evaluate.model_copy(update={"importance": "taylor"})
    loaded = COMMITTED.model_copy(update={"evaluate": evaluate})
    count = estimated(loaded.corpora, "selection", evaluate.measurement, 1024)
    plan = memory.planned(loaded, SMOLLM2, {"pair": count}, GPUS["H100"])
    assert sum(plan.phases["scoring"].values()) == many
    assert plan.needed < sum(plan.always.values()) + sum(sum(p.values()) for p in plan.phases.values())
    assert plan.on_device == plan.whitenings


def test_the_disk_of_an_export_its_copies_and_the_cache_is_planned() -> None:
    """As it was counted after the default's run: 0.81 GB of export, 0.87 in DVC's cache, 0.43 in MLflow's."""
    found = memory.on_disk(COMMITTED, SMOLLM2)
    assert found["export"] == found["DVC's copy of it"] == pytest.approx(0.81e9, rel=0.05)
    assert found["MLflow's copy of the model"] == pytest.approx(0.432e9, rel=0.01)
    evaluate = COMMITTED.evaluate.model_copy(update={"cache_mb": 0})
    (cached,) = {*found} - {"export", "DVC's copy of it", "MLflow's copy of the model"}
    one = 4 * 576 * 30 * (576 + 1536)
    assert memory.on_disk(COMMITTED.model_copy(update={"evaluate": evaluate}), SMOLLM2)[cached] == one
    assert found[cached] > 6 * one
