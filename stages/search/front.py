"""The front: the best forecast architecture of each further overall ratio, measured like the finalists.

One predictor serves all of them, and no pair is measured anew. A further overall ratio replaces the whole
budget: where that limits bytes or milliseconds too, those are not held to, and the table says what each
architecture takes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.architecture import Architecture, ModelShape
from stages.evaluate.measure.plan import Work
from stages.metrics.metric import Shown
from stages.metrics.registered import metric_of, shown
from stages.sample.designs import BASELINES
from stages.sample.limits import Limit
from stages.sample.space import Space
from stages.search.outcome import FINALIST, FRONT, Candidate
from stages.search.rounds import GuidedSearch, Metrics
from stages.search.tables import FrontRow
from stages.train_predictor.predictor import Predictor


def work(
    guided: GuidedSearch, predictor: Predictor, space: Space, known: Mapping[Architecture, Metrics]
) -> list[Work]:
    """What to measure: the best forecast architecture at each overall ratio of ``search.front``.

    Raises:
        InputError: the space does not reach one of them.
    """
    found = []
    for ratio in guided.search.front:
        trials = guided.ask(predictor, space, guided.search.rounds + 1, known, ratio)
        best = min(trials, key=lambda t: (t.objective, t.number))
        found.append(Work(best.architecture, FRONT, may_fail=True))
    return found


def rows(candidates: Sequence[Candidate], shape: ModelShape, limits: Sequence[Limit] = ()) -> list[FrontRow]:
    """A row an architecture by rising overall ratio: baselines, winner and front; not the other finalists.

    Baselines, which are among the pairs, have no forecast.
    """
    ordered = sorted((c for c in candidates if c.name != FINALIST), key=lambda c: c.overall_ratio)
    decisive = [metric_of(key) for key in shown(ordered[0].metrics, Shown.VERDICT)]
    beaten = dominated([(c.overall_ratio, *(m.cost(c.metrics[m.key]) for m in decisive)) for c in ordered])
    made = []
    for c, is_dominated in zip(ordered, beaten, strict=True):
        targets = {} if c.name in BASELINES else c.forecast
        forecasts = {metric.key: metric.forecast(targets) for metric in decisive}
        made.append(
            FrontRow(
                name=c.name,
                architecture=c.architecture.id,
                overall_ratio=c.overall_ratio,
                parameters=c.architecture.total_parameters(shape),
                objective=c.objective,
                metrics=shown(c.metrics, Shown.FRONT),
                forecast={key: value for key, value in forecasts.items() if value is not None},
                takes={li.name: li.of(c.architecture) for li in limits if li.name != "overall_ratio"},
                dominated=is_dominated,
            )
        )
    return made


def dominated(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points (overall ratio, cost of each text's perplexity or the like) have a better one among them.

    A better one removes at least as much, costs more on no text, and is not equal in all.
    """

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return a[0] >= b[0] and all(x <= y for x, y in zip(a[1:], b[1:], strict=True)) and list(a) != list(b)

    return [any(beats(other, point) for other in points) for point in points]
