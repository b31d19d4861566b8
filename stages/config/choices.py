"""The things that a key of params names one of, and the type of such a key.

Each registry says where ours are. An extension enters its own: ``IMPORTANCES.add("mine", mine)``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from stages.registry import Registry


def one_of(registry: Registry) -> AfterValidator:
    """The check of a key that names one of a registry's things."""

    def check(name: str) -> str:
        if name not in registry.names:
            raise PydanticCustomError("one_of", "one of {names}", {"names": ", ".join(registry.names)})
        return name

    return AfterValidator(check)


_IMPORTANCE = "stages.evaluate.calibrate.importance"
IMPORTANCES = Registry(
    "evaluate.importance",
    {
        "activation": f"{_IMPORTANCE}.moments:ACTIVATION",
        "wanda": f"{_IMPORTANCE}.moments:WANDA",
        "fluctuation": f"{_IMPORTANCE}.moments:FLUCTUATION",
        "magnitude": f"{_IMPORTANCE}.magnitude:MAGNITUDE",
        "random": f"{_IMPORTANCE}.control:RANDOM",
        "taylor": f"{_IMPORTANCE}.taylor:FIRST_ORDER",
        "taylor-second": f"{_IMPORTANCE}.taylor:SECOND_ORDER",
    },
)
"""Each a `stages.evaluate.calibrate.importance.Importance`: how units are scored."""

REPAIRS = Registry(
    "evaluate.reconstruction.method",
    {
        "none": "stages.evaluate.network.repair:NONE",
        "least-squares": "stages.evaluate.calibrate.least_squares:LEAST_SQUARES",
    },
)
"""Each a `stages.evaluate.network.repair.RepairMethod`: how pruned sites are repaired."""

EXECUTORS = Registry(
    "evaluate.executor",
    {
        "local": "stages.evaluate.measure.executors:local",
        "ray": "stages.evaluate.ray_executor:ray",
    },
)
"""Functions from params to a `stages.evaluate.measure.executors.Executor`: who measures."""

SAMPLERS = Registry(
    "search.sampler",
    {
        "tpe": "stages.search.samplers:tpe",
        "nsga2": "stages.search.samplers:nsga2",
        "random": "stages.search.samplers:uniform",
    },
)
"""Functions from a seed and the search's section to an Optuna sampler."""

ImportanceName = Annotated[str, one_of(IMPORTANCES)]
RepairName = Annotated[str, one_of(REPAIRS)]
ExecutorName = Annotated[str, one_of(EXECUTORS)]
SamplerName = Annotated[str, one_of(SAMPLERS)]

METRICS = Registry(
    "search.objective",
    {
        "ppl": "stages.metrics.perplexity:PPL",
        "log_ppl": "stages.metrics.perplexity:LOG_PPL",
        "bpb": "stages.metrics.bits_per_byte:BITS_PER_BYTE",
        "accuracy": "stages.metrics.accuracy:ACCURACY",
        "accuracy_norm": "stages.metrics.accuracy:ACCURACY_NORM",
        "log_likelihood": "stages.metrics.log_likelihood:LOG_LIKELIHOOD",
    },
)
"""Each a `stages.metrics.metric.Metric`, in the order in which tables show them."""
