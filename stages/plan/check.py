"""Everything that a run would refuse, found at once and before any work: `python -m stages.plan.check`.

Model, weight files by their headers, tokenizer, every corpus by itself, every measurement's and the
calibration's length, budget and designs, packages, GPU, memory and disk. Nothing is measured, and no
weight is read; the hub is asked for what is not here yet.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from stages.config.params import Corpora, Params, load_params
from stages.evaluate.calibrate.memory import SPARE, WAITING, MemoryPlan
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
from stages.evaluate.measurements import measured_on, prompts_of
from stages.evaluate.text.corpora import (
    Corpus,
    Document,
    Question,
    compared,
    load_questions,
    load_texts,
)
from stages.evaluate.text.prompts import chats, check_prompts, check_template
from stages.evaluate.text.selection import select
from stages.evaluate.workbench import calibration_windows
from stages.families import Description
from stages.files import InputError, cache_folder
from stages.plan import machines, memory
from stages.plan.plan import without_milliseconds
from stages.plan.token_counts import Reader, reader_of, token_counts
from stages.sample import feasibility
from stages.sample.feasibility import Request
from stages.sample.source import locate, read_model
from stages.sample.timing import has_gpu
from stages.sample.weight_check import check_source
from stages.stage import DATA

PACKAGES = {"lora": ("accelerate", "peft"), "qlora": ("accelerate", "peft", "bitsandbytes")}
"""What training needs beside the usual, by method; the others need the first's."""


@dataclass
class Findings:
    """What stops a run, what may not be as expected, and what was looked at, each a line."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    good: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self, what: str = "") -> Iterator[None]:
        """A problem if the body refuses; otherwise what is good then, if that is said."""
        try:
            yield
        except InputError as error:
            lines = str(error).splitlines()
            several = all(line.startswith(("params.yaml:", "note:")) for line in lines)
            self.problems += (
                [line for line in lines if line.startswith("params")] if several else [str(error)]
            )
            self.notes += [line for line in lines if line.startswith("note:")] if several else []
        else:
            self.good += [what] if what else []


def check(params: Params) -> Findings:
    """Ask everything; what one refusal makes unanswerable is passed over."""
    found = Findings()
    model = _model(params, found)
    reader = None if model is None else _reader(params, found)
    texts, questions = _corpora(params.corpora, found)
    if reader is not None:
        _lengths(params, reader, texts, questions, found)
    if model is not None:
        with found.noting("budget, designs, search and lengths go together"):
            asked = params
            if params.budget.timed:
                found.notes.append("note: what the budget's milliseconds allow, `sample` measures")
                asked = without_milliseconds(params)
            found.notes += feasibility.check(Request(asked, model))
    _packages(params, found)
    if model is not None and not found.problems:
        _memory(params, model, found)
    _verdicts(params, found)
    return found


def _model(params: Params, found: Findings) -> Description | None:
    """The model as described, if its configuration can be read; its weight files' headers are compared."""
    model: list[Description] = []
    with found.noting(f"model {params.model.source}: a family that is known, whole weight files"):
        model.append(read_model(params.model))
        check_source(locate(params.model), params.model, model[0])
    return model[0] if model else None


def _reader(params: Params, found: Findings) -> Reader | None:
    reader: list[Reader] = []
    with found.noting("tokenizer: it loads, and every token has a row"):
        reader.append(reader_of(params.model))
    return reader[0] if reader else None


def _corpora(
    corpora: Corpora, found: Findings
) -> tuple[dict[str, Corpus[Document]], dict[str, Corpus[Question]]]:
    """Each corpus that can be read, by itself, so that no fault hides another's."""
    texts: dict[str, Corpus[Document]] = {}
    questions: dict[str, Corpus[Question]] = {}
    for name, text in corpora.texts.items():
        with found.noting(f"text {name}: read, and divided"):
            texts |= load_texts(corpora.model_copy(update={"texts": {name: text}, "questions": {}}))
    for name, asked in corpora.questions.items():
        with found.noting(f"questions {name}: read, and divided"):
            questions |= load_questions(corpora.model_copy(update={"texts": {}, "questions": {name: asked}}))
    if len(texts) == len(corpora.texts) > 1:
        with found.noting("texts: no report part is what another chooses by"):
            compared("corpora.texts", corpora.texts, texts)
    if len(questions) == len(corpora.questions) > 1:
        with found.noting("questions: no report part is what another chooses by"):
            compared("corpora.questions", corpora.questions, questions)
    return texts, questions


def _lengths(
    params: Params,
    reader: Reader,
    texts: Mapping[str, Corpus[Document]],
    questions: Mapping[str, Corpus[Question]],
    found: Findings,
) -> None:
    """Whether every corpus suffices for every measurement, and all texts for the calibration."""
    section = params.evaluate
    if len(texts) == len(params.corpora.texts):
        with found.noting("calibration: the texts are long enough"):
            calibration_windows(reader, texts, section.calibration, section.measurement.text)
    if prompts := prompts_of(params):
        with found.noting("export.answers: the prompts are taken"):
            check_prompts(reader.tokenizer, prompts, reader.context_tokens)
    if section.calibration.conversations and chats(reader.tokenizer):
        with found.noting("calibration: conversations can be written in the model's chat template"):
            check_template(reader.tokenizer)
    for name, part, measurement, texts_alone in measured_on(params):
        choose: Callable[..., Any] = partial(
            select, part=part, tokenizer=reader.tokenizer, measurement=measurement,
            context_tokens=reader.context_tokens,
        )  # fmt: skip
        before = len(found.problems)
        for corpus, text in texts.items():
            with found.noting():
                choose({corpus: text}, {})
        for corpus, question in () if texts_alone else questions.items():
            with found.noting():
                choose({}, {corpus: question})
        problems = dict.fromkeys(found.problems[before:])  # one of all texts is said once
        found.problems[before:] = [f"{name}: {problem}" for problem in problems]
        if not problems:
            found.good.append(f"{name}: the {part} parts are long enough")


def _packages(params: Params, found: Findings) -> None:
    for key, section in (("search", params.search.recovery), ("export", params.export.recovery)):
        if section is None or section.method == "none":
            continue
        needed = PACKAGES.get(section.method, PACKAGES["lora"])
        if lacking := [name for name in needed if find_spec(name) is None]:
            found.problems.append(
                f"params.yaml: {key}.recovery.method is {section.method}, and {', '.join(lacking)} is not "
                "installed: pip install '.[recovery]', or set it to none"
            )
    if params.evaluate.executor == "ray" and find_spec("ray") is None:
        found.problems.append(
            "params.yaml: evaluate.executor is ray, and ray is not installed: pip install '.[ray]', or set "
            "it to local"
        )


def _memory(params: Params, model: Description, found: Findings) -> None:
    """Whether weights fit the device, and what is kept the disk."""
    device = "cuda" if params.evaluate.device != "cpu" and has_gpu() else "cpu"
    machine = machines.this_gpu(model.shape.hidden) if device == "cuda" else machines.this_cpu()
    measured = token_counts(params, device, TOKENS_PER_BATCH[device], count=False)
    plan = memory.planned(params, model.shape, measured, machine)
    where, has = ("GPU" if device == "cuda" else "memory"), plan.device_bytes / 1e9
    weights, again = sum(plan.always.values()) / 1e9, params.search.repair_again
    of = f"of {has / SPARE[device]:.1f} GB, of which {100 * SPARE[device]:.0f} % are planned with"
    if weights > has:
        found.problems.append(
            f"the model takes {weights:.1f} GB of the {where} {of}: a larger "
            f"machine is needed, a smaller model{', or search.repair_again: false' * again}"
        )
    elif plan.needed > plan.device_bytes:
        found.notes.append(f"note: the {where} is tight: {plan.needed / 1e9:.1f} GB {of}")
    else:
        found.good.append(f"{where}: {plan.held / 1e9:.1f} GB {of}")
    if plan.beside:
        _host_memory(plan, found)
    needed = sum(memory.on_disk(params, model.shape).values()) + plan.on_disk
    free = _free(DATA) if _device(DATA) == _device(cache_folder()) else _free(DATA) + _free(cache_folder())
    told = f"a run writes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the disk are free"
    if needed <= free:
        found.good.append(f"disk: {told}")
    elif (DATA / "export").exists():  # what a run before left may be what is missing
        found.notes.append(f"note: {told}, beside what the last run wrote")
    else:
        found.problems.append(f"{told}: make room, or name another folder for caches in PRUNECAST_CACHE")


def _host_memory(plan: MemoryPlan, found: Findings) -> None:
    """Whether what a GPU's run holds beside it fits the machine; whitenings do without."""
    needed, whole = sum(plan.beside.values()), psutil.virtual_memory().total
    told = f"{needed / 1e9:.1f} GB of {whole / 1e9:.1f} GB"
    if needed > whole:
        waiting = plan.beside.get(WAITING, 0.0)
        found.problems.append(
            f"beside the GPU, host memory would hold {told} (of them {waiting / 1e9:.1f} GB of {WAITING}): "
            f"set search.repair_again: false{', or lower evaluate.calibration.samples' * bool(waiting)}"
        )
    else:
        found.good.append(f"host memory: {told}")


def _free(folder: Path) -> float:
    return float(shutil.disk_usage(_there(folder)).free)


def _device(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _verdicts(params: Params, found: Findings) -> None:
    """A measurement of one window has no standard error, and gives no verdict."""
    for key, measurement in (("search", params.search.measurement), ("export", params.export.measurement)):
        if measurement.windows == 1:
            found.notes.append(
                f"note: {key}.measurement.windows is 1: one window has no standard error, so that nothing "
                "can be called better; ask for 2 at least, better for 12"
            )


def main() -> None:
    """Print what was found.

    Raises:
        InputError: something stops a run; a line for each.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.plan.check", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    begun, params = time.perf_counter(), load_params(parser.parse_args().params)
    found = check(params)
    print(*(f"ok    {line}" for line in found.good), *found.notes, sep="\n")
    if found.problems:
        count = len(found.problems)
        raise InputError("\n".join([f"{count} thing{'s' * (count > 1)} would stop a run:", *found.problems]))
    print(f"nothing would stop a run, as far as can be seen in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    from stages.stage import command

    command("check", main)
