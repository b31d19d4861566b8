"""How every stage runs: params in, clear errors out, and never longer than the `dvc` that started it."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from stages.config.params import Params, load_params
from stages.files import InputError

DATA = Path("data")
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Be terminated, on Linux, when the parent process dies: a killed `dvc` leaves no orphan writing."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died between the two calls
            os.kill(os.getpid(), signal.SIGTERM)


def main(name: str, body: Callable[[Params, argparse.Namespace], None]) -> None:
    """Run a stage's body with the params; bad input is printed and exits with 2, without a traceback."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name.replace('-', '_')}")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    arguments = parser.parse_args()
    if "DVC_STAGE" in os.environ:
        die_with_parent()
    try:
        body(load_params(arguments.params), arguments)
    except InputError as error:
        print(f"prunecast {name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"prunecast {name}: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None
