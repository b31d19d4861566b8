"""Every key of params.yaml with wrong and odd values: accepted, or refused with the key; never a traceback.

A few hundred by default; ``PRUNECAST_PARAMS_TRIALS=6000 pytest tests/sample/test_asked.py`` tries all.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.config.params import Params
from stages.config.problems import explained
from stages.files import InputError
from stages.sample.feasibility import Request, check
from tests.sample.test_feasibility import described, params_of
from tests.small import SMALL

TRIALS = int(os.environ.get("PRUNECAST_PARAMS_TRIALS", "300"))
VALUES: tuple[Any, ...] = (
    "text", "", "auto", "~nobody/x", None, True, [], {}, {"a": 1}, [1], ["F16", "Q8_0"],
    [0.1], [0.9, 0.1], [0.1, 0.9], [0.3, 0.3],
    -1, 0, 1, 2, 7, 31, 2**31 - 1, 10**30,
    0.5, 1e-3, 0.99, 1.0, 1.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"),
)  # fmt: skip
Place = tuple[Any, ...]


def places(section: Any, above: Place = ()) -> Iterator[Place]:
    for key in section if isinstance(section, dict) else range(len(section)):
        yield (*above, key)
        if isinstance(section[key], dict | list):
            yield from places(section[key], (*above, key))


def changed(document: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(document)
    section: Any = made
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    return made


def refusal(document: dict[str, Any]) -> str | None:
    """The first line of what is said against params, or None."""
    try:
        params = Params.model_validate(document)
        if not params.budget.timed:  # or a table of latencies would be measured
            check(Request(params, described(SMALL)))
    except ValidationError as error:
        return explained(Path("params.yaml"), document, error).split("\n")[0]
    except InputError as error:
        return str(error).split("\n")[0]
    return None


def test_each_key_with_each_value_is_accepted_or_refused_with_a_key():
    document = params_of(export__gguf=[]).model_dump()
    trials = [(place, value) for place in places(document) for value in VALUES]
    random.Random(0).shuffle(trials)
    said = {str(trial): refusal(changed(document, *trial)) for trial in trials[:TRIALS]}
    refused = {trial: words for trial, words in said.items() if words is not None}
    nameless = {t: words for t, words in refused.items() if not any(key in words for key in document)}
    assert nameless == {}
    assert TRIALS / 30 < TRIALS - len(refused) < TRIALS / 2
