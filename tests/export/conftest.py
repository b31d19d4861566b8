"""Made-up but plausible report data: damage nearly additive over sites, forecasts with noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import pytest

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.config.params import PARTS
from stages.evaluate.results.division import DividedCorpus, DividedPart
from stages.export.report import page
from stages.export.report.data import FrontPoint, MeasuredPoint, ReportData, Trust
from stages.export.results.final_table import Alternative, Answers, Contender, QuestionGroup, SearchStep
from stages.sample.space import Interval, options
from stages.search.course import Evaluation
from stages.search.explain import Explanation
from stages.search.narrowed_space import Class, NarrowedSite
from stages.train_predictor.results import Judged

TEXTS = {"wikipedia": 3.08, "news": 3.36}  # log perplexity of the dense model
ERRORS = {
    "r2": 0.871, "mae": 0.083, "rmse": 0.112, "spearman": 0.94, "held_out_pairs": 26,
    "coverage": 0.8077, "half_width": 0.1534,
}  # fmt: skip
VALIDATED = {
    "pairs": 84, "r2": 0.902, "mae": 0.07, "rmse": 0.09, "spearman": 0.951, "spearman_near_budget": 0.823,
    "pairs_near_budget": 21, "top_recall": 0.85, "top": 20,
}  # fmt: skip
TRUST = Trust(
    kind="additive+xgboost",
    promised_coverage=0.8,
    cross_validated={f"log_ppl.{text}": VALIDATED for text in TEXTS}
    | {
        "mmlu-dev.accuracy": {
            "pairs": 84,
            "r2": -0.213,
            "spearman": 0.07,
            "pairs_near_budget": 3,
            "top_recall": 0.3,
            "top": 20,
        }
    },
    compared=[
        Judged("log_ppl.news", "log PPL, nats a token", "xgboost on ratios", {"r2": 0.5, "spearman": 0.61}),
    ],
    ablation=[
        Judged(f"log_ppl.{text}", "nats a token", what, VALIDATED | {"r2": r2}, features)
        for text in TEXTS
        for what, features, r2 in (("all features", 84, 0.902), ("without damages", 81, 0.744))
    ],
    rounds=[
        {
            "round": number,
            "measured": 8,
            "trials": 60,
            "best_trial": 3,
            "gain": 0.012,
            "spearman.objective": 0.3 * number,
            "best_measured_objective": 3.5,
        }
        | {f"{kind}.log_ppl.{text}": 0.1 / number for kind in ("bias", "rmse") for text in TEXTS}
        for number in (1, 2)
    ],
)
HEADS = ((3, 3), (3, 2), (2, 3), (2, 2), (3, 1), (1, 3), (2, 1), (1, 2), (1, 1), (0, 0))


def divided(source: str, note: str, *counts: int) -> DividedCorpus:
    """A corpus with so many documents in each part that has any."""
    parts: dict[str, DividedPart] = {
        part: DividedPart(count, "", [str(i) for i in range(count)])
        for part, count in zip(PARTS, counts, strict=True)
        if count
    }
    return DividedCorpus(source, 1000 + sum(counts), sum(counts), note, parts)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing takes most of the time."""
    monkeypatch.setattr(page, "pictures", lambda data: {})


def build_report_data(layers: int = 30, pairs: int = 84, seed: int = 0) -> ReportData:
    """A SmolLM2-like model of so many layers, with every field of the report filled."""
    rng = random.Random(seed)
    shape = ModelShape("llama", layers, 576, 3, 3, 64, 1536, 49152, tied_embeddings=True)
    world = _World(shape, rng)
    winner, uniform, simple = world.winner(0.25), world.uniform(0.25), world.simple(0.25)
    measured = []
    for index in range(pairs):
        design = "bundled" if index % 4 else "free"
        architecture = world.random(4 if design == "bundled" else 1)
        measured.append(world.measure(architecture, design, held_out=index % 10 < 3))
    finalists = [world.measure(world.nudge(winner), "search", noise=0.02) for _ in range(9)]
    finalists.append(world.measure(winner, "search", noise=0.01))
    for name, architecture in (("dense", shape.dense()), ("uniform", uniform), ("simple", simple)):
        finalists.append(world.measure(architecture, name, noise=0.01))
    gains = {str(site): world.damage[site] ** 2 for site in shape.sites() if not world.exempt(site)}
    ranked = sorted(gains, key=lambda name: -gains[name])
    third = len(ranked) // 3
    classes: dict[str, Class] = dict.fromkeys(ranked[:third], "sensitive")
    classes |= dict.fromkeys(ranked[-third:], "insensitive")
    bounds: dict[Class, Interval] = {"sensitive": (0.0, 0.3), "insensitive": (0.1, 0.7), "other": (0.0, 0.5)}
    narrowed = {str(site): NarrowedSite(site, 0.0, "exempt", (0.0, 0.0)) for site in shape.sites()}
    for name in ranked:
        label = classes.get(name, "other")
        share = gains[name] / sum(gains.values())
        widths = widths_within(shape, name, bounds[label])
        narrowed[name] = NarrowedSite(narrowed[name].site, share, label, bounds[label], widths)
    front = [world.front_point(name, a) for name, a in (("dense", shape.dense()), ("winner", winner))]
    front += [world.front_point("front", world.winner(ratio)) for ratio in (0.1, 0.2, 0.35)]
    front += [world.front_point(name, a) for name, a in (("uniform", uniform), ("simple", simple))]
    best, history = 9.0, []
    for trial in range(600):
        best = min(best, 7.05 + 1.2 * math.exp(-trial / 90) + abs(rng.gauss(0, 0.15)))
        history.append(best)
    return ReportData(
        model="SmolLM2-135M-Instruct",
        shape=shape,
        contenders=[
            world.contender("dense", shape.dense()),
            world.contender("uniform", uniform),
            world.contender("simple", simple),
            world.contender("winner", winner),
        ],
        pairs=measured,
        finalists=finalists,
        predictor={f"log_ppl.{text}": ERRORS for text in TEXTS}
        | {"mmlu-dev.accuracy": ERRORS | {"r2": -0.35, "spearman": 0.02}},
        narrowed=narrowed,
        protocol=[
            ("Windows", "512 tokens, not overlapping, no BOS, the tail dropped"),
            ("Pairs", "2 windows of each text, 16 questions"),
            ("Finalists and baselines", "6 windows of each text, 32 questions"),
            ("This table", "12 windows of each text, 64 questions"),
            ("Questions", "zero-shot, by likelihood of the answer's text"),
            ("Arithmetic", "float32 on CPU, 2 cores"),
        ],
        corpora={
            "wikipedia": divided("package:gensim/wikipedia", "markup removed", 32, 37, 37),
            "news": divided("package:gensim/lee-news", "one story a line", 90, 104, 105),
            "mmlu-dev": divided("package:lm-eval/mmlu-dev", "", 0, 140, 141),
        },
        history=history,
        provenance=[
            ("Commit", "bcb2c18d1f0e6a7c3b5d9e8f7a6b5c4d3e2f1a0b"),
            ("Date", "2026-01-31"),
            ("Seconds", "sample 0.4, evaluate 2911, build-dataset 0.9, train-predictor 2.2, search 410"),
        ],
        question_groups=[
            QuestionGroup(
                f"mmlu-dev.{style}accuracy",
                kind,
                name,
                questions,
                {"dense": 0.31, "uniform": 0.24, "simple": 0.26, "winner": 0.28},
                {"dense": 0.06, "uniform": math.nan},
            )
            for style in ("", "letter.")
            for kind, name, questions in (("category", "STEM", 40), ("subject", "high_school_physics", 7))
        ],
        protocol_entries=[{"corpus": "news", "protocol": "standard", "predicted_tokens": 6132}],
        narrowed_by="damage",
        front=sorted(front, key=lambda point: point.overall_ratio),
        trust=TRUST,
        course=[
            Evaluation(
                n,
                0 if n <= pairs else 1 + (n > pairs + 8),
                f"{n:012x}",
                0.25,
                n > pairs,
                n == pairs + 1,
                3.7 - 0.01 * (n - pairs) / 16,
                3.7 - 0.01 * (n - pairs) / 16 if n > pairs else math.inf,
            )
            for n in range(1, pairs + 17)
        ],
        steps=[
            SearchStep("one-shot", uniform.id, 0, 3.71, {"ppl.wikipedia": 40.0, "ppl.news": 43.0}, {}, {}),
            SearchStep(
                "round 1",
                simple.id,
                pairs + 8,
                3.70,
                {"ppl.wikipedia": 38.0, "ppl.news": 42.9},
                {"ppl.wikipedia": -5.0, "ppl.news": -0.2},
                {"ppl.wikipedia": 1.2, "ppl.news": 0.9},
            ),
            SearchStep(
                "round 2",
                winner.id,
                pairs + 16,
                3.69,
                {"ppl.wikipedia": 37.0, "ppl.news": 43.4},
                {"ppl.wikipedia": -7.5, "ppl.news": 0.9},
                {"ppl.wikipedia": 1.1, "ppl.news": 0.6},
            ),
        ],
        alternatives=[
            Alternative(
                model, kind, round(size), {f"ppl.{t}": ppl for t in TEXTS}, {f"ppl.{t}": 1.5 for t in TEXTS}
            )
            for model, kind, size, ppl in (
                ("dense", "F16", 269e6, 20.9),
                ("winner", "F16", 216e6, 32.4),
                ("dense", "Q8_0", 143e6, 20.88),
                ("winner", "Q8_0", 115e6, 32.5),
                ("dense", "Q4_0", 90e6, 25.3),
                ("winner", "Q4_0", 75e6, 42.4),
            )
        ],
        answers=Answers(
            ["What is the capital of France?"],
            {"dense": ["The capital of France is Paris."], "winner": ["Paris,\n<b>a city</b>."]},
            {"winner": {"wikipedia": 0.632, "news": 0.46}},
            {"winner": {"wikipedia": 0.033}},
            "Each prompt, answered greedily.",
        ),
        explained=[world.explain(site, winner) for site in shape.sites()],
        export_check=[
            ("max |logit difference|", "3.1e-05"),
            ("Parameters in the file", f"{world.parameters(winner):,}"),
        ],
    )


def widths_within(shape: ModelShape, site: str, bounds: tuple[float, float]) -> list[tuple[int, ...]]:
    """The widths of a site, "12.mlp", whose ratios lie within bounds."""
    found = options(shape, Site.parse(site), 32)
    return [o.width for o in found if bounds[0] <= o.ratio <= bounds[1]]


class _World:
    """A model whose sites each do a known damage to log perplexity when cut."""

    def __init__(self, shape: ModelShape, rng: random.Random) -> None:
        self.shape, self.rng = shape, rng
        self.damage: dict[Site, float] = {}
        for site in shape.sites():
            depth = site.layer / (shape.layers - 1)
            base = 1.6 if site.kind is Kind.ATTENTION else 1.0
            ends = 1 + 4 * math.exp(-depth * 12) + 2 * math.exp(-(1 - depth) * 9)
            self.damage[site] = base * ends * rng.uniform(0.5, 1.5) * 30 / shape.layers / 18

    def explain(self, site: Site, winner: Architecture) -> Explanation:
        ratio, cost = winner.site_ratio(self.shape, site), self.damage[site]
        kept, dense = winner.widths[site.layer].of(site.kind), self.shape.width(site)
        next_price = 3 * cost if any(kept) else None
        return Explanation(
            site, dense, kept, ratio, cost * ratio, -0.1 * cost * ratio, 0.001 * ratio, 0.3 * cost, 1,
            "other", (0.0, 0.5), next_price, 2 * cost if ratio else None,
        )  # fmt: skip

    def exempt(self, site: Site) -> bool:
        return not 3 <= site.layer < self.shape.layers - 3

    def build(self, ratios: Mapping[Site, float]) -> Architecture:
        widths = []
        for layer in range(self.shape.layers):
            keep = 1 - ratios.get(Site(layer, Kind.ATTENTION), 0.0)
            heads = min(HEADS, key=lambda width: abs(width[0] * (1 + width[1]) / 12 - keep))
            channels = 1536 * (1 - ratios.get(Site(layer, Kind.MLP), 0.0))
            widths.append(LayerWidth(*heads, 32 * round(channels / 32)))
        return Architecture(tuple(widths))

    def random(self, bundle: int) -> Architecture:
        ratios: dict[Site, float] = {}
        for site in self.shape.sites():
            if site.layer % bundle == 0 or self.exempt(Site(site.layer - 1, site.kind)):
                ratios[site] = self.rng.choice((0.1, 0.2, 0.3, 0.4, 0.5))
            else:
                ratios[site] = ratios[Site(site.layer - 1, site.kind)]
        return self.build({site: ratio for site, ratio in ratios.items() if not self.exempt(site)})

    def uniform(self, overall_ratio: float) -> Architecture:
        inner = [site for site in self.shape.sites() if not self.exempt(site)]
        return self._at(overall_ratio, lambda ratio: self.build(dict.fromkeys(inner, ratio)))

    def simple(self, overall_ratio: float) -> Architecture:
        mlps = [site for site in self.shape.sites() if site.kind is Kind.MLP]
        return self._at(overall_ratio, lambda ratio: self.build(dict.fromkeys(mlps, ratio)))

    def winner(self, overall_ratio: float) -> Architecture:
        """Cuts MLPs where the damage is least, and a little of the attention."""

        def at(scale: float) -> Architecture:
            weight = {Kind.ATTENTION: 0.3, Kind.MLP: 1.0}
            ratios = {site: scale * weight[site.kind] / damage**0.6 for site, damage in self.damage.items()}
            return self.build({s: min(0.7, ratio) for s, ratio in ratios.items() if not self.exempt(s)})

        return self._at(overall_ratio, at)

    def _at(self, overall_ratio: float, build: Callable[[float], Architecture]) -> Architecture:
        candidates = [build(step / 400) for step in range(300)]
        return min(candidates, key=lambda a: abs(a.overall_ratio(self.shape) - overall_ratio))

    def nudge(self, architecture: Architecture) -> Architecture:
        widths = list(architecture.widths)
        for layer in self.rng.sample(range(3, self.shape.layers - 3), 6):
            channels = max(0, min(1536, widths[layer].channels + 32 * self.rng.choice((-4, -2, 2, 4))))
            widths[layer] = widths[layer]._replace(channels=channels)
        return Architecture(tuple(widths))

    def log_ppl(self, architecture: Architecture) -> float:
        """What the cuts add to the log perplexity."""
        ratios = {site: architecture.site_ratio(self.shape, site) for site in self.damage}
        return math.fsum(damage * math.pow(ratios[site], 1.6) for site, damage in self.damage.items())

    def measure(
        self, architecture: Architecture, design: str, held_out: bool = False, noise: float = 0.06
    ) -> MeasuredPoint:
        added = self.log_ppl(architecture)
        true = {text: dense + added * (1 + 0.1 * (text == "news")) for text, dense in TEXTS.items()}
        blur = 0.1 if held_out or design == "search" else 0.04
        return MeasuredPoint(
            architecture.id,
            design,
            architecture.overall_ratio(self.shape),
            {text: value + self.rng.gauss(0, noise) for text, value in true.items()},
            None
            if design in ("dense", "uniform", "simple")
            else {text: value + self.rng.gauss(0, blur) for text, value in true.items()},
            held_out,
        )

    def front_point(self, name: str, architecture: Architecture) -> FrontPoint:
        added = self.log_ppl(architecture)
        ppl = {text: math.exp(dense + added) for text, dense in TEXTS.items()}
        missed = {text: value * math.exp(self.rng.gauss(-0.03, 0.04)) for text, value in ppl.items()}
        return FrontPoint(
            name,
            architecture.id,
            architecture.overall_ratio(self.shape),
            self.parameters(architecture),
            ppl,
            missed if name in ("front", "winner") else {},
            {},
            dominated=name in ("uniform", "simple"),
        )

    def parameters(self, architecture: Architecture) -> int:
        removed = self.shape.decoder_parameters - architecture.kept_parameters(self.shape)
        return self.shape.total_parameters - removed

    def contender(self, name: str, architecture: Architecture) -> Contender:
        added = self.log_ppl(architecture)
        ppl = {f"ppl.{text}": math.exp(dense - 0.05 + added) for text, dense in TEXTS.items()}
        bpb = {f"bpb.{text}": (dense - 0.05 + added) / 3 for text, dense in TEXTS.items()}
        return Contender(
            name,
            architecture,
            architecture.overall_ratio(self.shape),
            self.parameters(architecture),
            {
                **ppl,
                **bpb,
                "mmlu-dev.accuracy": 0.29 - 0.02 * added,
                "mmlu-dev.log_likelihood": -11.2 - 2 * added,
            },
            {**{key: 0.03 * value for key, value in ppl.items()}, "mmlu-dev.accuracy": 0.0566},
        )


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    """30 layers, 84 pairs; the winner beats uniform and simple."""
    return build_report_data()


@pytest.fixture(scope="session")
def make_report_data() -> Callable[..., ReportData]:
    """`build_report_data`, for other sizes."""
    return build_report_data
