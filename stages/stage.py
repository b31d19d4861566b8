"""How every stage runs: signals are answered first, then params are read, then its body is imported and run.

A door imports this module alone, which needs the standard library alone, and names the body as
``"module:function"``: killed in its first seconds a stage is no orphan, and wrong params cost no import of
torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import ahead, signals
from stages.registry import named

if TYPE_CHECKING:
    import argparse

    from stages.config.params import Params

DATA = Path("data")


def main(
    name: str, body: str | Callable[[Params, argparse.Namespace], None], inputs: Sequence[str] = ()
) -> None:
    """Run a stage's body, or the one of that ``"module:function"``, with the params.

    `inputs` are files in data/ without which it cannot begin.
    """
    with _ending(name, "`dvc repro` goes on from there"):
        arguments = _arguments(name)
        from stages.config.params import load_params
        from stages.files import InputError

        params = load_params(arguments.params)
        if told := ahead.told(name):
            print(told, flush=True)
        for file in inputs:
            if not (DATA / file).exists():
                raise InputError(f"{DATA / file} is not there; run `dvc repro` to make it")
        run = named(body) if isinstance(body, str) else body
        signals.begin()
        run(params, arguments)
        signals.end()  # here, where a signal before it is still answered


def command(name: str, body: str | Callable[[], None]) -> None:
    """Run a command that is no stage and reads its arguments itself."""
    with _ending(name, "start it again"):
        run = named(body) if isinstance(body, str) else body
        signals.begin()
        run()
        signals.end()


@contextlib.contextmanager
def _ending(name: str, then: str) -> Iterator[None]:
    """How every command ends: 2 and one clear line for bad input, and for what the system refuses.

    By a signal: its exit code, and a line that says what was finished and what to do `then`. Everything else
    is a bug, and keeps its traceback.
    """
    with signals.watched(name, then):
        if "DVC_STAGE" in os.environ:
            signals.die_with_parent()
        try:
            from stages.locks import require_locks

            require_locks()
            yield
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            signals.end()
            code = _told(name, error, then)
            if code is None:
                raise
            raise SystemExit(code) from None


def _told(name: str, error: BaseException, then: str) -> int | None:
    """Print what ended a stage; its exit code, or None for a bug."""
    from stages.failures import explained
    from stages.files import InputError

    kept = "What was finished is kept"
    if isinstance(error, InputError):
        code, line = 2, f"prunecast {name}: {error}"
    elif isinstance(error, KeyboardInterrupt) or signals.noted():  # which packages may have wrapped
        number = signals.noted() or 2
        code = signals.exit_code(number)
        line = signals.last_words(number, getattr(error, "__notes__", ()))
    elif (what := explained(error)) is not None:
        code, line = 2, f"prunecast {name}: {what}. {kept}: {then}"
    else:
        error.add_note(
            f"prunecast {name}: this is a bug, or a package that is not as expected. {kept}: {then}"
        )
        return None
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    return code


def _arguments(name: str) -> argparse.Namespace:
    import argparse

    parser = argparse.ArgumentParser(prog=f"python -m stages.{name.replace('-', '_')}")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    return parser.parse_args()
