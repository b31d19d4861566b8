"""Extensions: Python files of the user's that add to the registries before params are checked.

``extensions: [ours/importance.py]`` in params.yaml names them, relative to the folder that a stage runs
in. Every stage runs each once, so an extension does nothing but define things and enter them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.files import InputError, located


def load(paths: Sequence[str]) -> None:
    """Run the files that were not run in this process yet.

    Raises:
        InputError: a file is not there, or fails; the message names it.
    """
    for path in paths:
        file = located(path, key="params.yaml: extensions names ").resolve()
        name = f"prunecast_extension_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            continue
        if not file.is_file() or file.suffix != ".py":
            raise InputError(
                f"params.yaml: extensions names {path!r}, which is no Python file; expected a path from "
                f"{Path.cwd()}"
            )
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(
                f"params.yaml: the extension {path!r} fails: {type(error).__name__}: {error}"
            ) from error
