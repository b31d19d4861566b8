"""What a repair is to the network that runs with it: refitted output projections of pruned sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.architecture import Architecture, LayerWidth, Site


class Repair(Protocol):
    """Refits the output projections of an elastic network's pruned sites, each by its width alone."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the projections besides the network and its calibration, for keys."""

    @property
    def words(self) -> str:
        """What it does to output projections, for the reader of a report."""

    def projection(self, site: Site, width: LayerWidth) -> Tensor | None:
        """The refitted projection (D, kept) in the network's dtype; None where the site's prefix stands."""

    def whitening(self, site: Site, heads: int) -> Tensor | None:
        """R (n, n) of a site whose elements stand in the order of widths with so many heads a group.

        Rx are uncorrelated (`stages.evaluate.calibrate.whitening`); None where nothing is refitted.
        """

    def on(self, network: Any) -> Repair:
        """This repair of a network with the same units in another precision (`ElasticNetwork.exact`)."""

    def prepare(self, architectures: Iterable[Architecture]) -> None:
        """Make ready what these architectures will ask for, in whatever order is cheapest."""


class _Nothing:
    """Pruned sites keep the prefixes of their own projections."""

    identity: Mapping[str, Any] = {"method": "none"}
    words = "none: output projections are cut, not refitted"

    def projection(self, site: Site, width: LayerWidth) -> None:
        return None

    def whitening(self, site: Site, heads: int) -> None:
        return None

    def on(self, network: Any) -> Repair:
        return self

    def prepare(self, architectures: Iterable[Architecture]) -> None: ...


NOTHING_REPAIRED: Repair = _Nothing()


@dataclass(frozen=True)
class RepairMethod:
    """A method of repairing pruned sites.

    `make` gives the `Repair` of an elastic network by a calibrator
    (`stages.evaluate.calibrate.calibration.Calibrator`). `by_statistics` says, for the plan of a run, that
    it reads the Gram matrices of activations (a forward pass and a matrix a site), and solves a projection
    for every site and width.
    """

    make: Callable[[Any, Any], Repair]
    by_statistics: bool = False


NONE = RepairMethod(lambda network, calibrator: NOTHING_REPAIRED)


@dataclass(frozen=True)
class Given:
    """Projections (D, kept) that were computed before, by site; where none is given, the prefix stands.

    They come to `device` one by one, as they are asked for.
    """

    projections: Mapping[Site, Tensor]
    device: torch.device | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    words: str = "output projections as given"

    def projection(self, site: Site, width: LayerWidth) -> Tensor | None:
        found = self.projections.get(site)
        return None if found is None else found.to(self.device or found.device)

    def whitening(self, site: Site, heads: int) -> None:
        return None

    def on(self, network: Any) -> Repair:
        return self

    def prepare(self, architectures: Iterable[Architecture]) -> None: ...
