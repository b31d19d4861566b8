"""The study: rows survive a kill, tasks are each run once, tables say what the rows hold."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study import __main__ as study
from tests.benchmarks.study import lines, methods, report, setting
from tests.small import SMOLLM2


def row(method: str, seed: int, architecture: str, evaluations: int, **more: Any) -> dict[str, Any]:
    made = {"regime": "repaired", "overall_ratio": 0.2, "gpu_seconds": 1.5, "objective": 3.6, "trace": None}
    named = {"method": method, "seed": seed, "architecture": architecture, "evaluations": evaluations}
    return made | named | more


def final(architecture: str, wikitext2: float, **more: float) -> dict[str, Any]:
    metrics = {"ppl.wikitext2": wikitext2, "ppl.ptb": 2 * wikitext2, **more}
    errors = {"mmlu.accuracy": 0.004} if "mmlu.accuracy" in metrics else {}
    return {"regime": "repaired", "architecture": architecture, "metrics": metrics, "standard_errors": errors}


def test_rows_are_read_back_and_one_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert lines.read(path) == []
    lines.append(path, {"a": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"a": 2, "b')
    assert lines.read(path) == [{"a": 1}]
    lines.append(path, {"a": 3})
    assert lines.read(path) == [{"a": 1}, {"a": 3}]


def test_every_method_runs_for_every_seed_but_those_that_draw_nothing() -> None:
    def tasks(name: str, seed: int) -> set[tuple[str, float]]:
        asked = argparse.Namespace(seed=seed, ratios=None, methods=None)
        return set(study.tasks(setting.REGIMES[name], asked))

    first, second = tasks("repaired", 0), tasks("repaired", 1)
    assert first == {(method, ratio) for method in methods.ALL for ratio in (0.2, 0.3, 0.4)}
    drawn = set(methods.ALL) - set(methods.SEEDLESS)
    assert second == {(method, ratio) for method in drawn for ratio in (0.2, 0.3)}  # 40 % has one seed
    assert {method for method, _ in tasks("taylor", 1)} == {"paper", "ours", "evolution"}


def test_ours_spends_what_its_params_say() -> None:
    params = setting.params_of(setting.REGIMES["repaired"], 0.2, 0, "model", Path("corpora"), Path("work"), 4)
    assert methods.evaluations_of_ours(SMOLLM2, params) == 3 + 24 + 5 * 8
    assert methods.evaluations_of_ours(SMOLLM2, methods.fewer(params)) == 3 + 8 + 3 * 8
    assert methods.evaluations_of_ours(SMOLLM2, methods.more(params)) == 3 + 24 + 12 * 8
    assert methods.checkpoints(SMOLLM2, params) == [35, 67, 123, 134]


def test_validation_text_is_divided_at_a_line(tmp_path: Path) -> None:
    for folder, name in (("wikitext2", "wiki.valid.tokens"), ("ptb", "ptb.valid.txt")):
        (tmp_path / folder).mkdir()
        text = "".join(f"line {i}\n" for i in range(1000))
        (tmp_path / folder / name).write_text(text, encoding="utf-8")
    setting.prepare(tmp_path, tmp_path / "work")
    for name in setting.TEXTS:
        parts = [(tmp_path / "work" / f"{name}.{p}.txt").read_text() for p in ("calibration", "selection")]
        assert "".join(parts) == text
        assert parts[0].endswith("\n")
        assert len(parts[1]) == pytest.approx(setting.SELECTED * len(text), abs=20)


def test_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("simple", 0, "s", 1), row("ours", 0, "a", 3, trace=[None, 3.7, 3.6]), row("ours", 1, "b", 3)]
    rows += [row("paper", 0, "a", 9), row("paper", 1, "c", 9)]
    asked = {"mmlu.accuracy": 0.25}
    finals = [final("s", 30.0), final("a", 27.0, **asked), final("b", 29.0, **asked), final("c", 31.0)]
    errors = {"pairs": 27, "held_out": 96, "r2": 0.98, "spearman": 0.8}
    forecasts = [
        {"regime": "repaired", "overall_ratio": 0.2, "model": "curves", "place": place, "target": target}
        | errors
        for place in ("wide", "near")
        for target in ("log_ppl.wikitext2", "log_ppl.ptb", "mean")
    ]
    for name, found in (("rows", rows), ("finals", finals), ("forecasts", forecasts)):
        lines.append(tmp_path / f"{name}-repaired-0.jsonl", *found)
    report.write(tmp_path)
    table = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert table.strip() == capsys.readouterr().out.strip()
    assert "| simple | 1 | 1 | 2 | 30.00 | 60.00 |  | 1.000, 1.000 |" in table
    assert "| ours | 3 | 2 | 2 | 28.00 (27.00 to 29.00) | 56.00 (54.00 to 58.00) | 25.00 ± 0.40 % |" in table
    assert "| paper | 9 | 2 | 2 | 29.00 (27.00 to 31.00) | 58.00 (54.00 to 62.00) |  |" in table, (
        "an accuracy of some seeds alone stands for none"
    )
    assert "| repaired 20 %, 27 pairs | curves | 0.980 | 0.980 | 96 | 0.800 | 0.800 |" in table
    assert (tmp_path / "repaired-20.png").stat().st_size > 1000
    with pytest.raises(FileNotFoundError, match="run the study's `search` first"):
        report.read(tmp_path / "work")
