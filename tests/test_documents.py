"""Every command of README and guides can be given as it stands, and is run by a test or says why not."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache

import click
import pytest

from stages import cli
from tests.small import REPOSITORY

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "data/README.md", "data/GUIDE.md")
PROGRAMS = (
    "make", "prunecast", "python", "dvc", "pytest", "pip", "mlflow", "vllm", "llama-server", "lm_eval",
    "optuna-dashboard", "git", "curl", "pre-commit", "cd", ".",
)  # fmt: skip

RUN = {
    "prunecast prune": "tests/test_cli.py",
    "prunecast profile": "tests/test_cli.py",
    "prunecast plan": "tests/test_cli.py",
    "prunecast check": "tests/plan/test_check.py",
    "prunecast --help": "tests/test_cli.py",
    "prunecast explain": "tests/test_pipeline.py",
    "prunecast repro": "tests/test_cli.py",
    "prunecast ui": "tests/tracking/test_ui.py",
    "python -m stages.evaluate": "tests/test_pipeline.py",
    "python -m stages.sample.latency": "tests/sample/test_latency.py",
    "python -m stages.plan.check": "tests/plan/test_check.py",
    "python -m stages.export.by_id": "tests/export/test_by_id.py",
    "python -m stages.tracking.champion": "tests/tracking/test_tracking.py",
    "python -m tests.house": "tests/test_house.py",
    "python -m tests.golden": "tests/golden.py",
    "dvc repro": "tests/test_pipeline.py",
    "dvc exp": "tests/test_pipeline.py",
    "dvc params": "tests/test_pipeline.py",
    "dvc metrics": "tests/test_pipeline.py",
    "dvc plots": "tests/test_pipeline.py",
    "dvc remote": "tests/test_pipeline.py",
    "dvc push": "tests/test_pipeline.py",
    "dvc pull": "tests/test_pipeline.py",
    "make report": "tests/test_pipeline.py",
    "make test": ".ci/run",
    "make install": ".ci/run",
    "make regression": "tests/test_regression.py",
    "make faults": "tests/test_faults.py",
    "git clone": "tests/test_pipeline.py",
    "git commit": "tests/test_pipeline.py",
    "pytest": ".ci/run",
}
"""What is run by the tests of that file, as it stands or by the module behind it."""
NOT_RUN = {
    "make repro": "twenty minutes; tests/test_pipeline.py runs the same pipeline on a tiny model",
    "make proof": "minutes on a whole model; tests/export/benchmark/test_proof.py runs the module",
    "make serve-check": "makes environments of gigabytes; its outputs are in tests/serving/README.md",
    "make ui": "serves until it is ended; tests/tracking/test_ui.py tests what it prints",
    "make profile": "`prunecast profile`, which is run",
    "make regression-update": "writes the baseline of CI",
    "pip": "asks a registry; .ci/run installs what it names, extras but for those of a GPU",
    "python -m tests.benchmarks": "a benchmark: minutes, and a quiet machine",
    "dvc queue": "a daemon of DVC's",
    "dvc exp show": "prints what `dvc exp run` left, which is run",
    "vllm": "another environment; tests/serving/README.md has its output",
    "llama-server": "compiles for ten minutes; tests/export/gguf/test_llama_cpp.py runs it where it is",
    "lm_eval": "fetches its tasks from the hub; tests/export/test_lm_eval.py runs it on tasks of ours",
    "optuna-dashboard": "a server of another package",
    "mlflow models": "a server; tests/tracking/test_tracking.py loads and asks what it serves",
    "curl": "asks the server above",
    "pre-commit": "writes git hooks",
    "git log": "is git's",
    "git add": "is git's",
    "cd": "is the shell's",
    ".": "is the shell's",
}
"""What no test runs as it stands, and why."""


def commands() -> Iterator[tuple[str, str]]:
    """Each documented command with its document: of blocks of shell, of transcripts, and within sentences."""
    for document in DOCUMENTS:
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        lines = []
        for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
            shown = block.splitlines()
            lines += [x[2:] for x in shown if x.startswith("$ ")] + (shown if language == "sh" else [])
        sentences = re.sub(r"```.*?```|``.*?``", "", text, flags=re.DOTALL)
        quoted = (" ".join(found.split()) for found in re.findall(r"`([^`]+)`", sentences))
        lines += [found for found in quoted if found.split(" ")[0] in PROGRAMS and " " in found]
        for line in lines:
            for part in re.split(r"\s&&\s|\s\|\s", re.sub(r"\s#\s.*", "", line)):
                if part.strip():
                    yield document, part.strip()


COMMANDS = sorted({command: document for document, command in commands()}.items())


def known(command: str) -> list[str]:
    """The entries of `RUN` and `NOT_RUN` that a command falls under, the most particular first."""
    entries = [e for e in (*RUN, *NOT_RUN) if command == e or command.startswith((f"{e} ", f"{e}."))]
    return sorted(entries, key=len, reverse=True)


def test_documents_have_commands() -> None:
    assert len(COMMANDS) > 40
    assert {document for _, document in COMMANDS} == set(DOCUMENTS)


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS])
def test_a_command_is_run_by_a_test_or_says_why_not(command: str) -> None:
    entries = known(command)
    assert entries, f"{command!r} is documented: enter it in RUN or NOT_RUN"
    if entries[0] in RUN:
        assert (REPOSITORY / RUN[entries[0]]).is_file()


def test_no_entry_is_of_a_command_that_no_document_has() -> None:
    used = {entry for command, _ in COMMANDS for entry in known(command)[:1]}
    assert sorted({*RUN, *NOT_RUN} - used) == []


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if c.startswith("prunecast ")])
def test_arguments_of_prunecast_are_taken(command: str) -> None:
    words = shlex.split(command)[1:]
    if words == ["--help"]:
        return
    found = cli.main.get_command(click.Context(cli.main), words[0])
    assert found is not None, f"{command!r}: there is no such command"
    found.make_context(words[0], words[1:])  # raises what a wrong option is told by


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if c.startswith("make ")])
def test_targets_of_make_are_there(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert command.split()[1] in targets


@cache
def options_of(module: str) -> str:
    asked = [sys.executable, "-m", module, "--help"]
    return subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if c.startswith("python -m ")])
def test_modules_are_there_and_have_the_options(command: str) -> None:
    module, *arguments = shlex.split(command)[2:]
    assert importlib.util.find_spec(module) is not None
    options = [word for word in arguments if word.startswith("--")]
    if options:
        assert all(option in options_of(module) for option in options)


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if c.startswith("dvc ")])
def test_arguments_of_dvc_are_taken(command: str) -> None:
    from dvc.cli import parse_args

    parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if c.startswith("pytest ")])
def test_what_pytest_is_to_run_is_there(command: str) -> None:
    assert all((REPOSITORY / word).exists() for word in shlex.split(command)[1:] if word.startswith("tests"))


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if c.startswith("pip ")])
def test_extras_are_those_of_the_package(command: str) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in re.findall(r"\.\[([\w,-]+)\]", command):
        assert set(asked.split(",")) <= set(extras)
