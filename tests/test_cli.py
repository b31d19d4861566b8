"""The command `prunecast`: help at once, params that change by what is asked for alone, the pipeline run."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from stages import ahead, cli
from stages.config import profiles
from stages.config.params import load_params
from stages.config.written import changed
from tests.conftest import TinyFolder
from tests.small import PARAMS, REPOSITORY
from tests.test_pipeline import Repository

COMMANDS = sorted(cli.main.commands)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_costs_nothing(words: list[str]) -> None:
    """No torch, transformers or MLflow: some hundredths of a second; a busy machine may take one."""
    program = "import sys; from stages.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - begun < 5
    assert "Usage:" in done.stdout
    assert not {"torch", "transformers", "mlflow", "pandas"} & set(done.stdout.splitlines()[-1].split())


def test_every_command_leads_to_a_module_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(cli, "_module", lambda *words: ran.append(list(words)))
    needed = {"export": ["0123", "folder"], "proof": ["--rounds", "9"], "profile": ["quick"]}
    for name in set(COMMANDS) - {"prune", "repro"}:
        result = CliRunner().invoke(cli.main, [name, *needed.get(name, [])])
        assert result.exit_code == 0, result.output
    for module, *_ in ran:
        place = REPOSITORY / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    assert len(ran) == len(COMMANDS) - 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params, their profiles and dvc.yaml."""
    for path in (*REPOSITORY.glob("params*.yaml"), REPOSITORY / "dvc.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    profiles.switch("default", tmp_path)
    (tmp_path / "Our Handbook.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words: str) -> click.testing.Result:
    return CliRunner().invoke(cli.main, ["prune", "--write", *words])


def test_params_are_written_and_nothing_else_of_them_changes(folder: Path) -> None:
    before = (folder / "params.yaml").read_text()
    result = invoke("org/model", "--ratio", "0.3")
    assert result.exit_code == 0, result.output
    after = (folder / "params.yaml").read_text()
    lines = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert [b.split("#")[0].strip() for _, b in lines] == ["source: org/model", "overall_ratio: 0.3"]
    assert invoke("org/model", "--ratio", "0.3").exit_code == 0
    assert (folder / "params.yaml").read_text() == after


def test_texts_take_the_place_of_the_corpora(folder: Path) -> None:
    result = invoke("org/model", "--text", "Our Handbook.txt", "--text", "hub:a/b:c:train")
    assert result.exit_code == 0, result.output
    params = load_params(folder / "params.yaml")
    assert params.corpora.texts == {"our-handbook": "Our Handbook.txt", "b": "hub:a/b:c:train"}
    assert params.corpora.questions == {}
    assert params.search.objective == {"log_ppl.our-handbook": 1.0, "log_ppl.b": 1.0}


def test_texts_of_one_name_are_counted(folder: Path) -> None:
    sources = ("hub:a/wiki:x:test", "hub:c/wiki@main:y:test", "package:gensim/wikipedia")
    assert invoke("org/model", *itertools.chain(*(("--text", s) for s in sources))).exit_code == 0
    assert list(load_params(folder / "params.yaml").corpora.texts) == ["wiki", "wiki-2", "wikipedia"]


def test_params_are_put_back_where_a_check_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, and which profile is active."""

    def refused(*words: str, **environment: str) -> None:
        assert load_params().model.source == "org/model"
        raise SystemExit(2)

    monkeypatch.setattr(cli, "_run", refused)
    before = {path: path.read_text() for path in folder.iterdir()}
    result = CliRunner().invoke(cli.main, ["prune", "org/model", "--ratio", "0.3", "--quick"])
    assert result.exit_code == 2
    assert "params.yaml is as it was before" in result.output
    assert {path: path.read_text() for path in folder.iterdir()} == before


def test_a_profile_stays_where_what_is_asked_of_it_is_refused(folder: Path) -> None:
    before = {path: path.read_text() for path in folder.iterdir()}
    assert invoke("", "--quick").exit_code == 2
    assert {path: path.read_text() for path in folder.iterdir()} == before
    assert "--quick is the profile quick" in invoke("m", "--quick", "--profile", "paper").output


def test_params_that_are_damaged_are_told_by_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "params.yaml").write_text("profile: default\nmodel: [")
    result = invoke("m")
    assert result.exit_code == 2
    assert "params.yaml is not valid YAML: line" in result.output + capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["m", "--text", "nowhere.txt"], "--text nowhere.txt: there is no such file"),
        (["m", "--text", "lines:nowhere.txt"], "--text lines:nowhere.txt: there is no such file"),
        (["m", "--profile", "none"], "there is no profile 'none'"),
        (["m", "--ratio", "1.5"], "1.5 is not in the range"),
        ([""], "model.source"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    folder: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_text() for path in folder.iterdir()}
    result = invoke(*words)
    assert result.exit_code == 2
    assert told in result.output + capfd.readouterr().err
    assert {path: path.read_text() for path in folder.iterdir()} == before


def test_outside_a_clone_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("org/model")
    assert result.exit_code == 2
    assert "there is no dvc.yaml" in result.output


def test_quick_is_the_profile_quick(folder: Path) -> None:
    assert invoke("org/model", "--quick").exit_code == 0
    assert load_params(folder / "params.yaml").profile == "quick"
    assert (folder / "params.default.yaml").is_file()


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("params*.yaml")), ids=lambda path: path.name)
def test_a_profile_that_is_written_again_says_the_same(path: Path) -> None:
    text = path.read_text()
    assert yaml.safe_load(changed(text, {})) == yaml.safe_load(text)


OWN_KEYS = (".corpora.texts", ".corpora.questions", ".search.objective")


def test_profiles_have_the_keys_of_the_default() -> None:
    def keys(content: object, path: str = "") -> set[str]:
        if not isinstance(content, dict) or path in (
            ".corpora.texts",
            ".corpora.questions",
            ".search.objective",
        ):
            return {path}
        return set().union(*(keys(value, f"{path}.{name}") for name, value in content.items()))

    whole = keys(yaml.safe_load(PARAMS.read_text()))
    for name, path in profiles.find(REPOSITORY).items():
        lacking = whole - keys(yaml.safe_load(path.read_text()))
        assert all(key.startswith((".export.proof", ".search.recovery")) for key in lacking), name


@pytest.mark.timeout(900)
def test_it_prunes_a_local_model_from_one_command(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """Params, check, pipeline and closing lines, as a user would run it."""
    repository = Repository(tmp_path / "repository", tiny_folder("llama"))
    repository.change(
        sample={"bundled": 6, "free": 3},
        search={"trials": 40, "rounds": 1, "front": []},
        export={"gguf": []},
    )
    repository.run("git", "init", "-q")
    repository.run("dvc", "init", "-q")
    text = repository.path / "handbook.txt"
    words = (repository.path / "corpora" / "prose.report.txt").read_text()
    text.write_text("\n\n".join(f"{i} {words}" for i in range(40)))
    done = repository.run(
        sys.executable, "-m", "stages.cli", "prune", str(tiny_folder("qwen2")), "--ratio", "0.3",
        "--text", "handbook.txt",
    )  # fmt: skip
    assert "nothing would stop a run" in done.stdout
    for number, stage in enumerate(ahead.STAGES, 1):
        assert f"stage {number} of 6, {stage}: about" in done.stdout
    assert "Done in" in done.stdout
    final = repository.json("export/metrics.json")["contenders"]
    assert 0.3 <= final["winner"]["overall_ratio"] <= 0.33
    assert "ppl.handbook" in final["winner"]
