"""What calibration text decides: the units' scores, the statistics, and the repair made of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.architecture import Architecture, Site
from stages.config.params import Params
from stages.evaluate.calibrate import curvature, importance, sequential, statistics
from stages.evaluate.calibrate.cache import TensorCache
from stages.evaluate.calibrate.importance import UnitScores
from stages.evaluate.calibrate.reconstruction import Reconstruction
from stages.evaluate.calibrate.statistics import SiteStatistics, Statistics
from stages.evaluate.calibrate.taylor import taylor
from stages.evaluate.measure import code_digest, digest
from stages.evaluate.network.checkpoint import Checkpoint, cache_folder
from stages.evaluate.network.elastic import Batch, ElasticNetwork, Repair
from stages.evaluate.results.damage import DamageCurves

HELD_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Of repaired projections and factors in memory: a look-up on disk takes as long as a layer on a GPU."""


class Calibrator:
    """Scores, statistics and repair from one set of calibration batches, each computed on demand.

    Attributes:
        key: digest of the weights, the calibration tokens, the dtype and the code.
    """

    def __init__(
        self, params: Params, loaded: Checkpoint, network: ElasticNetwork, batches: Sequence[Batch]
    ) -> None:
        self._section = params.evaluate
        self._loaded = loaded
        self._network = network
        self.batches = batches
        self._cache = TensorCache(cache_folder() / "calibration", self._section.cache_mb * 2**20)
        tokens = hashlib.sha256(b"".join(batch.tokens.numpy().tobytes() for batch in batches)).hexdigest()
        self.key = digest(loaded.digest, tokens, str(network.dtype), network.device.type, code_digest())

    @property
    def tokens(self) -> int:
        return sum(batch.tokens.numel() for batch in self.batches)

    def scores(self, path: Path) -> UnitScores:
        """The units' scores: those at `path` if they were computed from the same things, else new ones."""
        key = digest(self.key, self._section.importance)
        scores = UnitScores.load(path, key)
        if scores is None:
            print(f"Scoring units by {self._section.importance} on {self.tokens} tokens", flush=True)
            scores = self._score(self._section.importance)
            scores.save(path, key)
        return scores

    def _score(self, method: str) -> UnitScores:
        if method in ("taylor", "taylor-second"):
            return taylor(self._network, self.batches, order=1 if method == "taylor" else 2)
        if method == "magnitude":
            return importance.magnitude(self._network)
        if method == "random":
            return importance.random(self._network.shape, seed=0)
        return importance.from_statistics(method, self._network, self.statistics())

    def statistics(self) -> Statistics:
        """Statistics of every site, from the cache or by a pass over the calibration text.

        The pass is the dense network's own: sorting its units first does not change what is kept,
        since a fresh unsorted network is used once this one is sorted.
        """
        found: Statistics = {}
        for site in self._network.shape.sites():
            tensors = self._cache.get(f"{self.key}-{site}")
            if tensors is None:
                return self._gather()
            found[site] = SiteStatistics(tensors["gram"], tensors["total"], int(tensors["tokens"]))
        return found

    def _gather(self) -> Statistics:
        gathered = statistics.gather(ElasticNetwork(self._loaded, self._network.device), self.batches)
        for site, of_site in gathered.items():
            tensors = {"gram": of_site.gram, "total": of_site.total, "tokens": torch.tensor(of_site.tokens)}
            self._cache.put(f"{self.key}-{site}", tensors)
        return gathered

    def repair(self, network: ElasticNetwork, scores: UnitScores) -> Reconstruction | None:
        """The repair of a network sorted by `scores`, or None if params ask for none."""
        section = self._section.reconstruction
        if section.method == "none":
            return None
        key = digest(self.key, scores.digest, section.identity())
        return Reconstruction(
            network,
            _LazyStatistics(self),
            scores.order(),
            section.damping,
            self._cache,
            key,
            HELD_BYTES[network.device.type],
        )

    def curves(self, network: ElasticNetwork, scores: UnitScores, path: Path) -> DamageCurves:
        """What cutting each site is expected to cost (`curvature`), for a network sorted by `scores`.

        The curves at `path` if they were computed from the same things, else new ones; without points
        where params ask for none.
        """
        tokens = self._section.curvature_tokens
        parts = (scores.digest, self._section.reconstruction.identity(), tokens, curvature.STEPS)
        key = digest(self.key, *parts)
        found = DamageCurves.read(path, key) if path.is_file() else None
        if found is None:
            chosen = _spread(self.batches, tokens)
            count = sum(batch.tokens.numel() for batch in chosen)
            if chosen:
                print(f"Damage curves by curvature on {count} tokens", flush=True)
            repair = network.repair
            factor = repair.factor if isinstance(repair, Reconstruction) else lambda site: None
            found = curvature.expected_curves(network, chosen, factor) if chosen else DamageCurves({})
            found.write(path, key)
        return found

    def repair_again(self, network: ElasticNetwork, scores: UnitScores, architecture: Architecture) -> Repair:
        """The second repair of one architecture, from the cache or computed (`sequential`)."""
        section = self._section.reconstruction
        key = f"{digest(self.key, scores.digest, section.identity(), 'again')}-{architecture.id}"
        tensors = self._cache.get(key)
        if tensors is None:
            found = sequential.repair_again(network, architecture, self.batches, section.damping)
            tensors = {str(site): projection for site, projection in found.items()}
            self._cache.put(key, tensors)
        ready = {name: tensor.to(network.device, network.dtype) for name, tensor in tensors.items()}
        return lambda site, width: ready.get(str(site))


class _LazyStatistics(dict[Site, SiteStatistics]):
    """Statistics gathered or read when a site that is not solved yet first asks for them."""

    def __init__(self, calibrator: Calibrator) -> None:
        super().__init__()
        self._calibrator = calibrator

    def __missing__(self, site: Site) -> SiteStatistics:
        self.update(self._calibrator.statistics())
        return self[site]


def _spread(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """So many of the batches that they hold about so many tokens, evenly spread; at least one if any."""
    count = min(len(batches), math.ceil(tokens / batches[0].tokens.numel()))
    return [batches[index * len(batches) // count] for index in range(count)]
