"""The command `prunecast`: from a model to a smaller one, and every look at what was found.

    prunecast prune MODEL --ratio 0.3 --text ours.txt      writes params.yaml, and runs `dvc repro`
    prunecast --help

Each command is a door to a module of its own, which is imported when it runs: help costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from stages import ahead
from stages.stage import command

PARAMS = "params.yaml"
QUICK = "quick"
_RATIO = "The fraction of the decoder layers' parameters to remove."
_TEXT = "Text to calibrate and compare on, in place of the profile's; as often as wanted."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="prunecast", message="prunecast %(version)s")
def main() -> None:
    """Prune a language model structurally, and forecast how much to cut where.

    Run it where params.yaml and dvc.yaml lie.
    """


@main.command()
@click.argument("model")
@click.option("--ratio", type=click.FloatRange(0, 1, min_open=True, max_open=True), help=_RATIO)
@click.option("--text", "texts", multiple=True, metavar="FILE", help=_TEXT)
@click.option("--profile", help="The profile of params to begin with (`prunecast profile` lists them).")
@click.option("--quick", is_flag=True, help=f"The profile {QUICK}: a first answer, not the best one.")
@click.option("--write", is_flag=True, help="Write params.yaml, and run nothing.")
def prune(
    model: str, ratio: float | None, texts: Sequence[str], profile: str | None, quick: bool, write: bool
) -> None:
    """Prune MODEL: a hub id, a local folder, a .gguf file or package:NAME.

    Writes params.yaml, looks for what would stop a run, and runs the pipeline (`dvc repro`): what was
    measured before is not measured again, and killed it goes on from where it was.
    """
    if quick and profile:
        raise click.UsageError(f"--quick is the profile {QUICK}, and --profile {profile} another: give one")

    def body() -> None:
        from stages.config.written import asked_for, put_back

        with put_back(Path()):
            for line in asked_for(Path(PARAMS), model, ratio, texts, QUICK if quick else profile):
                print(line, flush=True)
            if write:
                return
            _run(sys.executable, "-m", "stages.plan.check")
        _repro()

    command("prune", body)


@main.command()
def repro() -> None:
    """Run the pipeline: every stage whose inputs have changed, with the time left, and what came out."""
    command("repro", _repro)


@main.command()
def check() -> None:
    """Find everything that would stop a run, at once and before any work."""
    _readable("check", PARAMS)
    _module("stages.plan.check")


@main.command()
@click.option("--params", default=PARAMS, show_default=True, help="The params to plan.")
@click.option("--gpu", help="A GPU in place of this machine's CPU, such as H100 or 'RTX 4090'.")
def plan(params: str, gpu: str | None) -> None:
    """What a run would take: evaluations, tokens, FLOPs, memory, hours."""
    _readable("plan", params)
    _module("stages.plan", "--params", params, *(["--gpu", gpu] if gpu else []))


@main.command()
@click.argument("name", required=False)
def profile(name: str | None) -> None:
    """List the profiles of params, or make NAME params.yaml."""
    _module("stages.config.profiles", *([name] if name else []))


@main.command()
@click.option("--again", is_flag=True, help="Measure even what was measured before.")
def latency(again: bool) -> None:
    """What each width takes on this machine, in milliseconds: what a budget may ask for."""
    _module("stages.sample.latency", *(["--again"] if again else []))


@main.command()
def report() -> None:
    """Make the report and the model card anew from the files of the last run, and say where they are."""
    _module("stages.export.report")


@main.command()
@click.option("--port", default=5000, show_default=True)
def ui(port: int) -> None:
    """Compare the runs in the MLflow UI."""
    _module("stages.tracking.ui", "--port", str(port))


@main.command()
@click.argument("site", required=False)
def explain(site: str | None) -> None:
    """Why the winner gives SITE, such as 7.mlp, the width that it has; without it, every site in a line."""
    _module("stages.search.explain", *([site] if site else []))


@main.command()
@click.argument("architecture")
@click.argument("folder")
def export(architecture: str, folder: str) -> None:
    """Export ARCHITECTURE, an id of data/search/front.csv or outcome.json, into a new FOLDER."""
    _module("stages.export.by_id", architecture, folder)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def proof(arguments: Sequence[str]) -> None:
    """The proof of speed again, with more rounds: --rounds 9 --threads 2 --prompt 512."""
    _module("stages.export.benchmark.proof", *arguments)


@main.command()
@click.argument("folders", nargs=-1)
def serve_check(folders: Sequence[str]) -> None:
    """Load exports in vLLM and other releases of transformers, each in an environment of its own."""
    _module("tests.serving", *folders)


def _readable(name: str, params: str) -> None:
    """Refuse params that cannot be read before what takes seconds to import."""

    def body() -> None:
        from stages.config.params import load_params

        load_params(Path(params))

    command(name, body)


def _module(name: str, *arguments: str) -> None:
    """Run a module as `python -m` does."""
    sys.argv = [name, *arguments]
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _repro() -> None:
    """`dvc repro`, whose stages are told the plan, and the closing lines."""
    begun, environment = time.time(), {}
    notes = Path(tempfile.mkdtemp(prefix="prunecast-")) / "stages"
    with contextlib.suppress(subprocess.CalledProcessError, ValueError):  # a run without a plan is a run too
        plan = [sys.executable, "-m", "stages.plan", "--json", "--no-count", "--gpu", "here"]
        found = subprocess.run(plan, capture_output=True, text=True, check=True).stdout
        environment = ahead.environment(json.loads(found.splitlines()[-1]), notes)
    try:
        _run("dvc", "repro", **environment)
    finally:
        shutil.rmtree(notes.parent, ignore_errors=True)
    seconds = str(round(time.time() - begun))
    _run(sys.executable, "-m", "stages.export.report.closing", "--seconds", seconds)


def _run(*words: str, **environment: str) -> None:
    """Run a program of this environment, said before; what stops it stops us.

    Raises:
        SystemExit: with its exit code, where that is not 0.
    """
    shown = ["python" if word == sys.executable else word for word in words]
    print(f"$ {' '.join(shown)}", flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.call(words, env={**os.environ, **environment, "PATH": path})
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
