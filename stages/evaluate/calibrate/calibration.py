"""What calibration text decides: the units' scores, the statistics, the repairs and the damage curves.

What is kept across runs carries a key: a digest of everything that it was computed from, with the
hand-set version of each step on the way (`VERSION` in the modules, `version` of an `Importance`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.architecture import Site
from stages.config.choices import IMPORTANCES, REPAIRS
from stages.config.params import Evaluate
from stages.evaluate.calibrate import curvature, second_repair, statistics
from stages.evaluate.calibrate.cache import TensorCache, Tensors
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.calibrate.memory import MemoryPlan
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.network import decoder
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.elastic import DenseNetwork, ElasticNetwork
from stages.evaluate.network.repair import Given, Repair, RepairMethod
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.results.scores import UnitScores
from stages.files import InputError, cache_folder, digest, kept


class Calibrator:
    """Scores, statistics, repairs and curves from one set of calibration batches, each on demand.

    `key` is a digest of the weights, the calibration tokens, the dtype and device, and the version of the
    network's arithmetic.
    """

    def __init__(
        self,
        section: Evaluate,
        checkpoint: Checkpoint,
        device: torch.device,
        batches: Sequence[Batch],
        memory: MemoryPlan,
    ) -> None:
        self.section = section
        self.memory = memory
        self.batches = batches
        self.cache = TensorCache(cache_folder() / "calibration", section.cache_mb * 2**20)
        self._checkpoint = checkpoint
        tokens = hashlib.sha256(b"".join(batch.tokens.numpy().tobytes() for batch in batches)).hexdigest()
        dtype = str(checkpoint.state[checkpoint.family.embedding].dtype)
        self.key = digest(checkpoint.digest, tokens, dtype, device.type, decoder.VERSION)

    @property
    def tokens(self) -> int:
        return sum(batch.tokens.numel() for batch in self.batches)

    def key_of(self, network: ElasticNetwork, what: Mapping[str, Any]) -> str:
        """The key of something that is computed from this calibration and a sorted network."""
        return digest(self.key, statistics.VERSION, network.order.digest, dict(what))

    def scores(self, path: Path, network: DenseNetwork) -> UnitScores:
        """The units' scores: those at `path` if they were computed from the same things, else new ones."""
        name = self.section.importance
        importance: Importance = IMPORTANCES[name]
        key = digest(self.key, name, importance.version, statistics.VERSION)
        scores = kept(path, lambda path: UnitScores.load(path, key))
        if scores is None:
            print(f"Scoring units by {name} on {self.tokens} tokens", flush=True)
            data = CalibrationData(network, self.batches, lambda: self.statistics(network))
            scores = importance.score(data).of_units(network.shape)
            if not scores.finite(network.shape):
                raise self._overflow(f"units' scores by {name}")
            scores.save(path, key)
        return scores

    def statistics(self, network: Decoder) -> Iterator[tuple[Site, SiteStatistics]]:
        """Statistics of every site, one after the other: from the cache, or by a pass over the text.

        `network` is the dense one with its units in the checkpoint's order. They are kept where the cache
        holds all of them: a pass on a GPU takes less time than writing and reading a large model's.
        """
        if all(self.cache.holds(self._statistics_key(site)) for site in network.shape.sites()):
            yield from self._kept_statistics(network)
        else:
            yield from self._gathered(network, [*network.shape.sites()])

    def _kept_statistics(self, network: Decoder) -> Iterator[tuple[Site, SiteStatistics]]:
        sites = [*network.shape.sites()]
        for place, site in enumerate(sites):
            tensors = self.cache.get(self._statistics_key(site))
            if tensors is None:  # it went, or is damaged
                yield from self._gathered(network, sites[place:])
                return
            yield site, SiteStatistics(tensors["gram"], tensors["total"], int(tensors["tokens"]))

    def _gathered(self, network: Decoder, wanted: Sequence[Site]) -> Iterator[tuple[Site, SiteStatistics]]:
        keep = statistics.size_bytes(network.shape) <= self.cache.limit_bytes
        for site, found in statistics.gather(network, self.batches):
            if site not in wanted:
                continue
            self._check(found.square_sums(), what="activations' squares")
            if keep:
                tensors = {"gram": found.gram, "total": found.total, "tokens": torch.tensor(found.tokens)}
                self.cache.put(self._statistics_key(site), tensors)
            yield site, found

    def _statistics_key(self, site: Site) -> str:
        return f"{digest(self.key, statistics.VERSION)}-{site}"

    def _check(self, *values: Any, what: str) -> None:
        """Raise InputError unless all numbers of these tensors, arrays or lists are finite."""
        if not all(bool(torch.as_tensor(v).isfinite().all()) for v in values):
            raise self._overflow(what)

    def _overflow(self, what: str) -> InputError:
        dtype = str(self._checkpoint.state[self._checkpoint.family.embedding].dtype)
        return InputError(
            f"model.source {self._checkpoint.name!r}: the {what} on the calibration text are not finite "
            f"in {dtype.removeprefix('torch.')}: numbers overflow. Try evaluate.dtype: float32; where "
            "that is set, the weights are damaged: take another checkpoint"
        )

    def repair(self, network: ElasticNetwork) -> Repair:
        """The repair of the network that params ask for."""
        method: RepairMethod = REPAIRS[self.section.reconstruction.method]
        return method.make(network, self)

    def curves(self, network: ElasticNetwork, repair: Repair, path: Path) -> DamageCurves:
        """What cutting each site is expected to cost (`curvature`).

        The curves at `path` if they were computed from the same things, else new ones; without points
        where params ask for none.
        """
        tokens = self.section.curvature_tokens
        what = {"curves": curvature.VERSION, "steps": curvature.STEPS, "tokens": tokens}
        key = self.key_of(network, what | {"repair": dict(repair.identity)})
        found = kept(path, lambda path: DamageCurves.read(path, key))
        if found is None:
            chosen = _spread(self.batches, tokens)
            count = sum(batch.tokens.numel() for batch in chosen)
            if chosen:
                print(f"Damage curves by curvature on {count} tokens", flush=True)
            found = curvature.expected_curves(network, repair, chosen) if chosen else DamageCurves({})
            self._check(*found.points.values(), what="damage curves by curvature")
            found.write(path, key)
        return found

    def repair_again(
        self, network: ElasticNetwork, repair: Repair, once: Sequence[PrunedWeights], exact: ElasticNetwork
    ) -> list[PrunedWeights]:
        """The second repair of weights that were cut and repaired once, the rest of them out of `exact`.

        Making one of them makes all, where the cache folder can hold them: there each is kept.
        """
        step = {"repair again": {"version": second_repair.VERSION}}

        def key(weights: PrunedWeights) -> str:
            return f"{self.key_of(network, {'again': [*weights.made, step]})}-{weights.architecture.id}"

        def compute(wanted: Sequence[PrunedWeights]) -> Tensors:
            """The projections of the first, those of all in the cache."""
            architectures = [weights.architecture for weights in wanted]
            found = second_repair.repair_again(network, repair, architectures, self.batches)
            first: Tensors = {}
            for weights in reversed(wanted):
                first = {str(site): made for site, made in found[weights.architecture].items()}
                self.cache.put(key(weights), first)
            return first

        def maker(weights: PrunedWeights) -> Callable[[torch.dtype], State]:
            def make(dtype: torch.dtype) -> State:
                tensors = self.cache.get(key(weights))
                if tensors is None:
                    rest = [w for w in once if w is not weights and not self.cache.holds(key(w))]
                    tensors = compute([weights, *(rest if self._hold(once) else [])])
                made = Given({Site.parse(name): t for name, t in tensors.items()}, exact.device)
                return exact.sliced_state(weights.architecture, made, dtype)

            return make

        return [weights.then(step, maker(weights)) for weights in once]

    def _hold(self, weights: Sequence[PrunedWeights]) -> bool:
        """Whether the cache holds the refitted projections of all of them."""
        each = second_repair.kept_bytes(self._checkpoint.shape)
        return len(weights) * each <= self.cache.limit_bytes


def _spread(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """So many of the batches that they hold about so many tokens, evenly spread; at least one if any."""
    count = min(len(batches), math.ceil(tokens / batches[0].tokens.numel()))
    return [batches[index * len(batches) // count] for index in range(count)]
