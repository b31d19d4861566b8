"""The guard: what is noise, what is a regression, and that planted bugs are caught."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from stages.architecture import Architecture
from stages.config.params import load_params
from stages.files import InputError
from stages.sample import designs
from tests import tiny
from tests.regression import __main__ as guard
from tests.regression import baseline as baseline_file
from tests.regression import comment, mutants, pipeline, settings, table
from tests.regression.baseline import Contender, Run
from tests.regression.comparison import Verdict, compare, differences, judge, notes
from tests.regression.pipeline import MIXED, Check, Result, mixed
from tests.small import REPOSITORY as ROOT
from tests.small import SMALL, SMOLLM2

SETTINGS = settings.load(guard.HERE / "settings.yaml")
WINDOWS, QUESTIONS = 12, 32
WIDE, NARROW = Architecture.from_json([[2, 3, 64]]), Architecture.from_json([[1, 2, 40]])


def samples(log_ppl: float = 3.0, seed: int = 0) -> dict[str, list[float]]:
    """Windows and questions that differ among themselves far more than any tolerance."""
    rng = random.Random(seed)
    return {
        "log_ppl.prose": [rng.gauss(log_ppl, 0.5) for _ in range(WINDOWS)],
        "quiz.accuracy": [float(rng.random() < 0.4) for _ in range(QUESTIONS)],
        "quiz.log_likelihood": [-rng.uniform(2, 20) for _ in range(QUESTIONS)],
    }


def run_of(**contenders: Contender) -> Run:
    protocol = [
        {"corpus": "prose", "part": "report", "windows": WINDOWS},
        {"corpus": "quiz", "questions": 32},
    ]
    found = contenders or {
        "simple": Contender(WIDE, 0.25, samples()),
        "winner": Contender(NARROW, 0.25, samples()),
    }
    return Run("tiny", "w0", protocol, {"prose": "t0", "quiz": "t1 0123"}, {"a.b": 1}, {"torch": "2"}, found)


def changed(run: Run, name: str, metric: str, values: Sequence[float]) -> Run:
    before = run.contenders[name]
    after = replace(before, samples={**before.samples, metric: list(values)})
    return replace(run, contenders={**run.contenders, name: after})


def shifted(run: Run, name: str, metric: str, mean: float, spread: float = 0.0) -> Run:
    """Every sample moved by `mean` and by ± `spread` in turn, which cancels out."""
    values = run.contenders[name].samples[metric]
    return changed(run, name, metric, [v + mean + spread * (-1) ** i for i, v in enumerate(values)])


def verdicts(baseline: Run, now: Run) -> dict[str, Verdict]:
    """What is not the same."""
    rows = compare(baseline, now, SETTINGS)
    assert len(rows) == sum(len(c.samples) for c in now.contenders.values())
    return {f"{r.contender} {r.metric}": r.verdict for r in rows if r.verdict is not Verdict.SAME}


def test_a_run_is_the_same_as_itself_and_as_itself_but_for_rounding() -> None:
    run = run_of()
    assert verdicts(run, run) == {}
    assert verdicts(run, shifted(run, "simple", "log_ppl.prose", 1e-5, 1e-4)) == {}


@pytest.mark.parametrize(
    ("metric", "worse"), [("log_ppl.prose", 0.02), ("quiz.log_likelihood", -0.2)], ids=["ppl", "likelihood"]
)
def test_worse_everywhere_is_a_regression_and_better_everywhere_is_told(metric: str, worse: float) -> None:
    """The samples differ among themselves 25 times as much: only the pairing shows it."""
    run = run_of()
    assert statistics.stdev(run.contenders["simple"].samples[metric]) > 20 * abs(worse)
    shown = f"simple {metric.removeprefix('log_') if metric.startswith('log_ppl') else metric}"
    assert verdicts(run, shifted(run, "simple", metric, worse)) == {shown: Verdict.REGRESSION}
    assert verdicts(run, shifted(run, "simple", metric, -worse)) == {shown: Verdict.BETTER}


def test_a_mean_that_is_worse_by_less_than_its_noise_is_noise() -> None:
    """Mean +0.02 nats, paired standard error 0.2 / sqrt(11): beyond the tolerance, not beyond the noise."""
    run = run_of()
    now = shifted(run, "simple", "log_ppl.prose", 0.02, spread=0.2)
    assert verdicts(run, now) == {"simple ppl.prose": Verdict.NOISE}
    row = next(r for r in compare(run, now, SETTINGS) if r.verdict is Verdict.NOISE)
    assert row.change == pytest.approx(100 * math.expm1(0.02))
    assert row.error == pytest.approx(100 * math.exp(0.02) * 0.2 / math.sqrt(11))


def test_what_the_search_finds_may_vary_more_than_what_is_given() -> None:
    run = run_of()
    worse = math.log1p(SETTINGS.tolerance.found.ppl_percent / 100)
    assert verdicts(run, shifted(run, "winner", "log_ppl.prose", 0.9 * worse)) == {}
    assert "winner ppl.prose" in verdicts(run, shifted(run, "winner", "log_ppl.prose", 1.1 * worse))
    assert "simple ppl.prose" in verdicts(run, shifted(run, "simple", "log_ppl.prose", 0.9 * worse))


def test_a_text_traded_for_another_is_judged_by_both_together() -> None:
    """One text 4 % better and one 5 % worse: together 0.4 % worse, which is within the tolerance."""
    two = {f"log_ppl.{name}": samples(seed=i)["log_ppl.prose"] for i, name in enumerate(("prose", "verse"))}
    run = run_of(simple=Contender(WIDE, 0.25, two))
    now = shifted(shifted(run, "simple", "log_ppl.prose", -0.04), "simple", "log_ppl.verse", 0.048)
    found = {row.metric: row for row in compare(run, now, SETTINGS)}
    assert found["ppl.prose"].verdict is Verdict.BETTER
    assert found["ppl.verse"].verdict is Verdict.REGRESSION
    assert found["ppl.*"].verdict is Verdict.SAME
    assert found["ppl.*"].change == pytest.approx(100 * math.expm1(0.004))
    ppl = [math.exp(statistics.fmean(values)) for values in now.contenders["simple"].samples.values()]
    assert found["ppl.*"].now == pytest.approx(math.sqrt(math.prod(ppl)))
    worse = shifted(now, "simple", "log_ppl.prose", 0.06)
    assert {r.metric: r.verdict for r in compare(run, worse, SETTINGS)}["ppl.*"] is Verdict.REGRESSION


def test_accuracy_falls_by_questions_that_are_lost_and_none_won() -> None:
    run = run_of()
    right = run.contenders["simple"].samples["quiz.accuracy"]
    lost = [0.0] * len(right)
    assert verdicts(run, changed(run, "simple", "quiz.accuracy", lost)) == {
        "simple quiz.accuracy": Verdict.REGRESSION
    }
    one = right.index(1.0)
    less = [0.0 if i == one else v for i, v in enumerate(right)]
    assert verdicts(run, changed(run, "simple", "quiz.accuracy", less)) == {
        "simple quiz.accuracy": Verdict.NOISE
    }


def test_a_perplexity_a_thousand_times_as_high_is_a_regression_however_far_windows_differ() -> None:
    """On the scale of the perplexity itself the standard error would be as large as the change."""
    assert judge(7.0, 1.0, 0.005, 2.0) is Verdict.REGRESSION
    run = run_of()
    assert "simple ppl.prose" in verdicts(run, shifted(run, "simple", "log_ppl.prose", 7.0, spread=3.0))


def test_one_sample_has_no_noise_to_compare_with() -> None:
    run = run_of()
    one = changed(run, "simple", "log_ppl.prose", [3.0])
    with pytest.raises(ValueError, match="at least two samples"):
        compare(one, one, SETTINGS)


MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "other"}, "model: tiny in the baseline, other now"),
    "text": (
        {"fingerprints": {"prose": "t9", "quiz": "t1 0123"}},
        "tokens of prose: t0 in the baseline, t9 now",
    ),
    "question": ({"fingerprints": {"prose": "t0"}}, "tokens of quiz: t1 0123 in the baseline, absent now"),
    "protocol": (
        {
            "protocol": [
                {"corpus": "prose", "part": "report", "windows": 8},
                {"corpus": "quiz", "questions": 32},
            ]
        },
        "protocol of prose: windows: 12 in the baseline, 8 now",
    ),
    "architecture": (
        {"contenders": {"simple": Contender(NARROW, 0.25, samples())}},
        f"architecture simple: {WIDE.id} in the baseline, {NARROW.id} now",
    ),
    "contender": (
        {"contenders": {"new": Contender(WIDE, 0.25, samples())}},
        "contender new: not in the baseline",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_other_tokens_protocols_or_architectures_are_not_compared(name: str) -> None:
    changes, words = MISMATCHES[name]
    with pytest.raises(InputError, match="make regression-update") as raised:
        compare(run_of(), replace(run_of(), **changes), SETTINGS)
    assert words in str(raised.value)


def test_the_winner_packages_weights_and_params_may_change_and_are_told() -> None:
    run = run_of()
    winner = replace(run.contenders["winner"], architecture=WIDE)
    now = replace(run, contenders={**run.contenders, "winner": winner})
    assert differences(run, now) == []
    now = replace(now, weights="w1", params={"a.b": 2, "a.c": 3}, packages={"torch": "3"})
    assert differences(run, now) == []
    assert notes(run, now) == [
        "weights: w0, now w1",
        "package torch: 2 in the baseline, 3 now",
        "params a.b: 1 in the baseline, 2 now",
        "params a.c: absent in the baseline, 3 now",
    ]


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(simple=Contender(WIDE, 0.25, {"log_ppl.prose": [3.1234567, 2.5]}))
    baseline_file.write(tmp_path / "b.json", run)
    assert baseline_file.read(tmp_path / "b.json") == run


@pytest.mark.parametrize("damage", ["missing", "torn", "schema", "widths"])
def test_a_baseline_that_cannot_be_read_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "b.json"
    if damage != "missing":
        baseline_file.write(path, run_of())
        text = path.read_text()
        bad = {"torn": text[:-20], "schema": text.replace('"version": 1', '"version": 0'), "widths": ""}
        bad["widths"] = text.replace("[[1, 2, 40]]", "[[1, 2, 41]]")
        path.write_text(bad[damage])
    with pytest.raises(InputError, match="make regression-update"):
        baseline_file.read(path)


def test_the_table_names_everything_in_a_line_a_figure() -> None:
    run = run_of()
    now = shifted(run, "simple", "log_ppl.prose", 0.02)
    rows = compare(run, now, SETTINGS)
    lines = table.text(rows).splitlines()
    assert lines[0].split() == " ".join(table.COLUMNS).split()
    assert lines[1].split()[:2] == ["simple", "ppl.prose"]
    assert lines[1].split()[4:] == ["+2.02", "%", "0.00", "0.5", "REGRESSION"]
    assert len(lines) == 1 + len(rows)
    assert "| **REGRESSION** |" in table.markdown(rows)
    failing = Result(now, [Check("size", "3", "2", False), Check("form", "x", "x", True)], "stage export: no")
    assert table.summary(rows, failing) == [
        "FAILED size: 3; expected 2",
        "FAILED the reduced pipeline broke off: stage export: no",
        "REGRESSION: 1 of 6 figures are worse, beyond tolerance and noise",
    ]
    assert table.summary(compare(run, run, SETTINGS), Result(run, [], None)) == ["No regression: 6 figures"]
    assert table.summary([], failing)[-1].startswith("FAILED")


@pytest.mark.parametrize("shape", [SMALL, SMOLLM2], ids=["small", "smollm2"])
def test_mixed_is_cut_in_every_way(shape: Any) -> None:
    architecture = mixed(shape)
    architecture.check(shape)
    widths = architecture.widths
    assert widths[0] == widths[-1] == shape.widest
    assert any(w.kv_groups < shape.kv_groups and w.has_attention for w in widths)
    assert any(w.heads_per_group < shape.heads_per_group and w.has_attention for w in widths)
    assert any(w.channels % 32 for w in widths if w.has_mlp)
    assert [w.has_attention for w in widths].count(False) == [w.has_mlp for w in widths].count(False) == 1


def test_the_committed_baseline_belongs_to_the_settings_and_the_code() -> None:
    """What `make regression` would refuse to compare, found without running it."""
    run = baseline_file.read(guard.HERE / "baseline.json")
    for section, values in SETTINGS.params.items():
        for key, value in pipeline._flat(values, f"{section}.").items():
            assert run.params[key] == value, f"{key}: run `make regression-update`"
    sections = load_params(guard.PARAMS)
    sample = sections.sample.model_copy(update=SETTINGS.params["sample"])
    budget = sections.budget.model_copy(update=SETTINGS.params["budget"])
    given = {d.design: d.architecture for d in designs.baselines(SMOLLM2, sample, budget)}
    given[MIXED] = mixed(SMOLLM2)
    assert list(run.contenders) == [*given, "winner"]
    for name, architecture in given.items():
        assert run.contenders[name].architecture == architecture, name
    metrics = {"log_ppl.wikipedia", "log_ppl.news", "mmlu-dev.accuracy_norm"}
    metrics |= {f"mmlu-dev{f}.{m}" for f in ("", ".letter") for m in ("accuracy", "log_likelihood")}
    assert all(set(c.samples) == metrics for c in run.contenders.values())


# --- the whole of it, on a tiny model that has learnt its text ------------------------------------

SUBJECTS = ["crow", "fox", "wolf", "hen", "frog", "ox"]
OBJECTS = ["bread", "water", "stone", "field", "river", "tree"]
VERBS = ["sees", "feeds", "fears", "finds"]


def prose(sentences: int, seed: int) -> str:
    """Sentences whose second half says the first one backwards: worth paying attention to."""
    rng = random.Random(seed)

    def sentence() -> str:
        s, o = rng.choice(SUBJECTS), rng.choice(OBJECTS)
        verb = VERBS[(SUBJECTS.index(s) + rng.randrange(2)) % len(VERBS)]
        return f"the {s} {verb} the {o} and the {o} {verb} the {s}."

    return " ".join(sentence() for _ in range(sentences))


def quiz(seed: int) -> str:
    rng = random.Random(seed)
    rows = []
    for _ in range(12):
        s, others = rng.choice(SUBJECTS), rng.sample(OBJECTS, 3)
        choices = [s, *others]
        rng.shuffle(choices)
        question = f"the {s} sees the {others[0]} and the {others[0]} sees whom?"
        rows.append(
            {"question": question, "choices": choices, "answer": choices.index(s), "subject": "fables"}
        )
    return "".join(json.dumps(row) + "\n" for row in rows)


def trained_model(folder: Path, steps: int = 150) -> None:
    """A tiny model that predicts the prose well: its parts matter, and some units more than others."""
    model = tiny.random_model("llama")
    tokens = torch.tensor(tiny.byte_tokenizer()(prose(2000, seed=0))["input_ids"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        at = torch.randint(0, len(tokens) - 96, (12,), generator=generator)
        rows = torch.stack([tokens[start : start + 96] for start in at])
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)


class Guarded(NamedTuple):
    """The guard of the tiny model: its settings, and the baseline that `--update` wrote."""

    settings: Path
    baseline: Path

    @property
    def options(self) -> list[str]:
        return ["--settings", str(self.settings), "--baseline", str(self.baseline)]


def tiny_settings(model: Path, corpora: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((guard.HERE / "settings.yaml").read_text())
    params = content["params"]
    small = {"sequence_length": 64, "windows": 2, "questions": 2, "question_tokens": None}
    measurement = params["export"]["measurement"] | {"sequence_length": 64, "windows": 8, "questions": 12}

    def parts(name: str) -> dict[str, str]:
        return {p: str(corpora / name.format(p)) for p in ("calibration", "selection", "report")}

    changes: Mapping[str, dict[str, Any]] = {
        "model": {"source": str(model)},
        "corpora": {"texts": {"prose": parts("{}.txt")}, "questions": {"quiz": parts("{}.jsonl")}},
        "budget": {"tolerance": 0.03},
        "sample": {"first_layers_kept": 0, "last_layers_kept": 0, "mlp_granularity": 8, "bundle": 1},
        "evaluate": {
            "calibration": {"samples": 8, "sequence_length": 64, "conversations": 0},
            "measurement": params["evaluate"]["measurement"] | small,
        },
        "search": {
            "objective": {"log_ppl.prose": 1.0},
            "trials": 40,
            "rounds": 2,
            "per_round": 2,
            "min_distance": 1,
            "measurement": params["search"]["measurement"] | small,
        },
        "export": {"measurement": measurement | {"question_tokens": None}},
    }
    for section, values in changes.items():
        params[section] |= values
    return content


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    folder = tmp_path_factory.mktemp("guard")
    trained_model(folder / "model")
    for seed, part in enumerate(("calibration", "selection", "report"), start=1):
        (folder / f"{part}.txt").write_text(prose(80, seed))
        (folder / f"{part}.jsonl").write_text(quiz(seed))
    (folder / "settings.yaml").write_text(yaml.safe_dump(tiny_settings(folder / "model", folder)))
    made = Guarded(folder / "settings.yaml", folder / "baseline.json")
    assert guard.main(["--update", *made.options]) == 0
    return made


@pytest.mark.filterwarnings("ignore:The optimal value found")  # of a Gaussian process on ten pairs
def test_the_same_code_passes_and_leaves_nothing_behind(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written, markdown = guarded.baseline.read_bytes(), tmp_path / "out" / "table.md"
    assert guard.main([*guarded.options, "--markdown", str(markdown)]) == 0
    printed = capsys.readouterr().out
    for contender in ("dense", "uniform", "simple", "mixed", "winner"):
        assert f"\n{contender} " in printed
    assert "exported folder's log perplexity, prose, against the prefix view's" in printed
    assert "No regression: 30 figures" in printed
    assert markdown.read_text().startswith("- No regression: 30 figures")
    assert guarded.baseline.read_bytes() == written
    assert list(tmp_path.iterdir()) == [markdown.parent]


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_planted_bugs_are_caught(guarded: Guarded, mutant: mutants.Mutant) -> None:
    done = mutants.guarded(mutant, [*guarded.options, "--given"])
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.endswith(Verdict.REGRESSION)]
    caught = {(words[0], words[1]) for words in lines}
    assert ("mixed", "ppl.prose") in caught, done.stdout
    dense = ("dense", "ppl.prose") in caught
    assert dense == (mutant.name != "importance-sign-flipped"), done.stdout


def test_a_bug_is_planted_somewhere_or_it_is_an_error(tmp_path: Path) -> None:
    stale = replace(mutants.MUTANTS[0], old="code of long ago")
    with pytest.raises(ValueError, match="holds 'code of long ago' 0 times; expected once"):
        mutants.plant(stale, tmp_path)


def test_a_stage_that_breaks_fails_the_guard_and_the_table_is_printed(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = pipeline._stage

    def breaking(name: str, params: Any) -> None:
        if name == "evaluate":
            raise InputError("architecture x measured nan")
        stage(name, params)

    monkeypatch.setattr(pipeline, "_stage", breaking)
    assert guard.main(guarded.options) == 1
    printed = capsys.readouterr().out
    assert "FAILED the reduced pipeline broke off: InputError: architecture x measured nan" in printed
    assert "\nmixed " in printed
    before = guarded.baseline.read_bytes()
    assert guard.main(["--update", *guarded.options]) == 1
    assert guarded.baseline.read_bytes() == before


def test_a_repair_that_breaks_does_not_hide_what_was_measured_before(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaking(*_: Any) -> None:
        raise RuntimeError("not positive-definite")

    monkeypatch.setattr("stages.evaluate.calibrate.least_squares.LeastSquares._solve", breaking)
    assert guard.main([*guarded.options, "--given"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED the reduced pipeline broke off: RuntimeError: not positive-definite" in printed
    assert "\ndense " in printed
    assert "\nuniform " not in printed


def test_other_text_is_refused_with_what_to_do(
    guarded: Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(guarded.settings.read_text())
    content["params"]["export"]["measurement"]["windows"] = 7
    other = tmp_path / "settings.yaml"
    other.write_text(yaml.safe_dump(content))
    options = ["--settings", str(other), "--baseline", str(guarded.baseline), "--given"]
    assert guard.main(options) == 2
    printed = capsys.readouterr().err
    assert "protocol of prose: windows: 8 in the baseline, 7 now" in printed
    assert "make regression-update" in printed


@pytest.mark.parametrize(
    ("change", "words"),
    [({"standard_error": 2.0}, "standard_error"), ({"tolerance": {"export_nats": -1.0}}, "export_nats")],
)
def test_wrong_settings_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = yaml.safe_load((guard.HERE / "settings.yaml").read_text())
    for key, value in change.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=words):
        settings.load(tmp_path / "s.yaml")


# --- the comment on a pull request ----------------------------------------------------------------


def gathered(folder: Path, **texts: str) -> Path:
    for name, content in texts.items():
        (folder / f"{name}.md").write_text(content)
    (folder / "pictures").mkdir()
    for name in ("widths.png", "base-widths.png", "tradeoff.png"):
        (folder / "pictures" / name).write_bytes(b"")
    return folder


def test_the_comment_holds_the_table_what_dvc_says_and_the_pictures(tmp_path: Path) -> None:
    text = comment.body(gathered(tmp_path, regression="| table |", metrics="| ppl |\n", params="\n"))
    assert text.startswith(f"{comment.MARKER}\n")
    assert "| table |" in text
    assert "<summary>dvc metrics diff</summary>\n\n| ppl |\n\n</details>" in text
    assert "`dvc params diff`: No parameter changed." in text
    place = comment.PICTURES
    assert f"| ![widths.png]({place}/base-widths.png) | ![widths.png]({place}/widths.png) |" in text
    assert f"| not there | ![tradeoff.png]({place}/tradeoff.png) |" in text


def test_the_comment_says_which_step_failed(tmp_path: Path) -> None:
    text = comment.body(tmp_path)
    assert "The guard did not come to a result" in text
    assert "`dvc metrics diff` could not be made" in text
    assert "No pictures" in text


def test_a_comment_that_github_would_refuse_is_shortened(tmp_path: Path) -> None:
    text = comment.body(
        gathered(tmp_path, regression="| table |", metrics="| a metric |\n" * 9000, params="")
    )
    assert comment.LIMIT - 100 < len(text) < 65_536
    assert text.count("<details>") == text.count("</details>") == 1
    assert text.endswith("… shortened; the run's artifact has all of it.\n")


def test_the_workflow_and_the_comment_agree_on_names() -> None:
    workflow = (ROOT / ".github" / "workflows" / "regression.yml").read_text()
    assert workflow.count(comment.PICTURES) == 2
    assert comment.MARKER in workflow
    for name in ("regression.md", "metrics.md", "params.md"):
        assert f"$OUT/{name}" in workflow
    written = yaml.safe_load(workflow)["jobs"]
    assert "permissions" not in written["measure"]  # runs the code of the pull request: reads only
    assert yaml.safe_load(workflow)["permissions"] == {"contents": "read"}
    assert not any("checkout" in step.get("uses", "") for step in written["comment"]["steps"])
