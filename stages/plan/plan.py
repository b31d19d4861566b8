"""What a run of params would take: evaluations, tokens, FLOPs, memory, hours. Nothing is measured.

    python -m stages.plan                                                  # params.yaml, on this CPU
    python -m stages.plan --params params.paper.yaml --gpu "A100 80GB"

The model need not be there: its shape comes from a config.json, and LLaMA-2-7B's is part of this
package. FLOPs count two for each weight and token. Times are estimates: see `stages.plan.machines`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stages.architecture import ModelShape
from stages.config.params import ModelSection, Params, load_params
from stages.evaluate.calibrate.memory import SPARE, MemoryPlan
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
from stages.evaluate.text.prompts import chats
from stages.families import Description, describe
from stages.files import InputError, located
from stages.plan import machines, memory
from stages.plan.machines import Machine
from stages.plan.step import Step
from stages.plan.token_counts import TokenCount, at_hand, reader_of, token_counts
from stages.plan.workload import steps
from stages.recovery.needs import BYTES, smaller, training_bytes
from stages.sample import feasibility
from stages.sample.feasibility import Request
from stages.sample.source import read_model

KNOWN = {"meta-llama/Llama-2-7b-hf": "llama-2-7b.json"}
"""Configurations in this folder, for models that can only be had with a licence."""
STAGE_S = {"sample": 4, "evaluate": 20, "build-dataset": 4, "train-predictor": 20, "search": 20, "export": 30}
"""Starting a stage, reading text, logging, writing: seconds, measured on one core."""


def model_of(section: ModelSection, config: Path | None) -> Description:
    """The model as described by a config.json (or its folder), by one in this package, or by its own.

    Raises:
        InputError: there is no such file, or its family is not supported.
    """
    if config is None and section.source in KNOWN:
        config = Path(__file__).with_name(KNOWN[section.source])
    if config is None:
        return read_model(section)
    given = located(str(config), key="--config ")
    path = given / "config.json" if given.is_dir() else given
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a readable config.json: {error}") from error
    return describe(content, str(path))


def without_milliseconds(params: Params) -> Params:
    """The params without limits in milliseconds: which widths meet them, a table of this machine tells.

    Raises:
        InputError: the budget limits nothing else.
    """
    budget = params.budget.model_copy(update={"prefill_ms": None, "decode_ms": None})
    if budget.overall_ratio is None and budget.size_bytes is None:
        raise InputError(
            "params.yaml: budget limits milliseconds alone, and a plan measures nothing; set "
            "budget.overall_ratio too, to what `python -m stages.sample.latency` says that they take"
        )
    return params.model_copy(update={"budget": budget})


def without_conversations(params: Params) -> Params:
    """The params of a model that writes none, as it has no chat template."""
    calibration = params.evaluate.calibration.model_copy(update={"conversations": 0})
    evaluate = params.evaluate.model_copy(update={"calibration": calibration})
    return params.model_copy(update={"evaluate": evaluate})


def report(loaded: Params, shape: ModelShape, measured: Mapping[str, TokenCount], machine: Machine) -> str:
    """The plan, for a person."""
    work = steps(loaded, shape, measured, torch.bfloat16 if machine.device == "cuda" else torch.float32)
    lines = [
        f"profile {loaded.profile}: {loaded.model.source}, {shape.total_parameters / 1e9:.3g} billion "
        f"parameters, {shape.layers} layers",
        f"on {machine.name}: {machine.flops / 1e12:.3g} TFLOP/s, of which {100 * machine.fraction:.0f} % are "
        "reckoned with",
        "",
        *_token_counts(measured),
        "",
        *_work(work, machine),
        "",
        *_memory(memory.planned(loaded, shape, measured, machine), machine.device),
        *_recovery(loaded, shape, machine),
        "disk:",
        *_parts(memory.on_disk(loaded, shape)),
    ]
    return "\n".join(lines)


_WHITENINGS = "whitenings of the repair"


def _memory(plan: MemoryPlan, device: str) -> list[str]:
    """Where what lies, the widest phase with its parts."""
    held, whole = plan.held, plan.device_bytes / SPARE[device]
    fits = ""
    if sum(plan.always.values()) > plan.device_bytes:
        fits = ": it does NOT fit"
    elif plan.needed > plan.device_bytes:
        fits = ": tight; lower evaluate.prefix_cache_mb (a GPU's batches are halved where its memory ends)"
    lines = [f"memory: {_gigabytes(held)} of {_gigabytes(whole)}{fits}", *_parts(plan.always)]
    lines += _parts({_WHITENINGS: plan.on_device})
    lines += _parts({f"{plan.widest}: {name}": size for name, size in plan.phases[plan.widest].items()})
    less = {f"({phase})": sum(p.values()) for phase, p in plan.phases.items() if phase != plan.widest}
    lines += _parts(less)
    if host := plan.in_host_memory + sum(plan.beside.values()):
        lines += [f"host memory: {_gigabytes(host)}"]
        lines += _parts({_WHITENINGS: plan.in_host_memory, **plan.beside})
    return [*lines, *_parts({f"{_WHITENINGS}, on the disk while a stage runs": plan.on_disk})]


def _recovery(loaded: Params, shape: ModelShape, machine: Machine) -> list[str]:
    """What training holds beside the dense model, and whether that fits."""
    methods = {s.method for s in (loaded.search.recovery, loaded.export.recovery) if s is not None} - {"none"}
    if not methods:
        return []
    method = max(methods, key=BYTES.__getitem__)
    kept = round(memory.kept_parameters(loaded, shape))
    dense = shape.total_parameters * machine.bytes_each
    needed = training_bytes(method, kept)
    beside = f"beside the dense model's {_gigabytes(dense)}, and activations"
    found = f"recovery by {method}: {_gigabytes(needed)} {beside}"
    if needed + dense <= machine.memory_bytes:
        return [found]
    instead = smaller(method, kept, machine.memory_bytes - dense)
    return [f"{found}: it does NOT fit; {instead or 'neither do adapters'}"]


def _parts(sizes: Mapping[str, float]) -> list[str]:
    return [f"  {_gigabytes(size):>9}  {name}" for name, size in sizes.items() if size]


def _token_counts(measured: Mapping[str, TokenCount]) -> list[str]:
    how = "counted" if all(count.exact for count in measured.values()) else "estimated"
    lines = [f"an evaluation reads ({how})   windows  questions     tokens  predicted"]
    for name, r in measured.items():
        lines.append(f"  {name:26} {r.windows:9,} {r.questions:10,} {r.tokens:10,} {r.predicted:10,}")
    return lines


def stage_seconds(work: Sequence[Step], machine: Machine) -> dict[str, float]:
    """How long each stage takes, in seconds."""
    return {
        stage: overhead + sum(_seconds(step, machine) for step in work if step.stage == stage)
        for stage, overhead in STAGE_S.items()
    }


def _seconds(step: Step, machine: Machine) -> float:
    return machine.seconds(step.flops, step.flops32, step.flops64, step.layers) + step.cpu_s


def _work(work: Sequence[Step], machine: Machine) -> list[str]:
    lines = [
        f"{'stage':16}{'what':42}{'evaluations':>11}{'tokens':>16}{'PFLOPs':>11}{'float32':>9}{'float64':>9}{'time':>9}"
    ]
    total = 0.0
    for stage, overhead in STAGE_S.items():
        for step in (s for s in work if s.stage == stage):
            seconds = _seconds(step, machine)
            total += seconds
            lines.append(
                f"{stage:16}{step.what:42}{step.evaluations or '':>11}{step.tokens or 0:>16,}"
                f"{step.flops / 1e15:>11,.3g}{step.flops32 / 1e15:>9,.3g}{step.flops64 / 1e15:>9,.3g}"
                f"{_time(seconds):>9}"
            )
        total += overhead
        lines.append(f"{stage:16}{'all else':42}{'':>11}{'':>16}{'':>11}{'':>18}{_time(overhead):>9}")
    flops, flops32, flops64 = (
        sum(getattr(s, name) for s in work) for name in ("flops", "flops32", "flops64")
    )
    lines.append(
        f"{'together':58}{sum(s.evaluations for s in work):>11,}{sum(s.tokens for s in work):>16,}"
        f"{flops / 1e15:>11,.3g}{flops32 / 1e15:>9,.3g}{flops64 / 1e15:>9,.3g}{_time(total):>9}"
    )
    return lines


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def main() -> None:
    """Print the plan that the arguments ask for.

    Raises:
        InputError: params, model or machine are not as expected.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    parser.add_argument("--gpu", default="cpu", help=f"{', '.join(machines.GPUS)}, here; default: this CPU")
    parser.add_argument("--config", type=Path, help="a config.json, in the place of the model's own")
    parser.add_argument(
        "--count",
        action=argparse.BooleanOptionalAction,
        help="read tokenizer and corpora to count tokens; by default where neither needs the hub",
    )
    parser.add_argument("--json", action="store_true", help="seconds by stage alone, for programs")
    arguments = parser.parse_args()
    loaded = load_params(arguments.params)
    loaded = without_milliseconds(loaded)
    model = model_of(loaded.model, arguments.config)
    shape, notes = model.shape, feasibility.check(Request(loaded, model))
    machine = machines.named(arguments.gpu, shape.hidden)
    count = at_hand(loaded) if arguments.count is None else arguments.count
    measured = token_counts(loaded, machine.device, TOKENS_PER_BATCH[machine.device], count)
    if count and not chats(reader_of(loaded.model).tokenizer):
        loaded = without_conversations(loaded)
    if arguments.json:
        dtype = torch.bfloat16 if machine.device == "cuda" else torch.float32
        print(json.dumps(stage_seconds(steps(loaded, shape, measured, dtype), machine)))
        return
    print(report(loaded, shape, measured, machine))
    print(*notes, sep="\n", end="\n" if notes else "")
