"""Sites, widths, architectures and their parameter counts. Standard library only.

A *site* is one prunable sublayer. A *width* is what it keeps: ``(kv_groups, heads_per_group)``
for attention, channels for an MLP. An *architecture* is a width for every site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any, NamedTuple


class Kind(StrEnum):
    """The two kinds of prunable sublayer."""

    ATTENTION = "attention"
    MLP = "mlp"


Width = tuple[int, ...]
"""What one site keeps: ``(kv_groups, heads_per_group)`` of an attention, ``(channels,)`` of an MLP."""


class Site(NamedTuple):
    """One prunable sublayer of one decoder layer."""

    layer: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind.value}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The inverse of `str`.

        >>> Site.parse("3.mlp")
        Site(layer=3, kind=<Kind.MLP: 'mlp'>)
        >>> str(Site.parse("3.mlp"))
        '3.mlp'

        Raises:
            ValueError: the text is no site.
        """
        layer, _, kind = text.partition(".")
        return cls(int(layer), Kind(kind))


class LayerWidth(NamedTuple):
    """What one decoder layer keeps. ``kv_groups * heads_per_group == 0`` drops the attention,
    ``channels == 0`` drops the MLP."""

    kv_groups: int
    heads_per_group: int
    channels: int

    def of(self, kind: Kind) -> Width:
        """The part of the width that belongs to a kind of site."""
        return (self.kv_groups, self.heads_per_group) if kind is Kind.ATTENTION else (self.channels,)

    def keeps(self, kind: Kind) -> bool:
        """Whether the sublayer of that kind is there at all."""
        return all(self.of(kind))

    @property
    def has_attention(self) -> bool:
        return self.kv_groups > 0 and self.heads_per_group > 0

    @property
    def has_mlp(self) -> bool:
        return self.channels > 0


def _normal(width: LayerWidth) -> LayerWidth:
    """The width, of which a dropped attention is (0, 0)."""
    return width if width.has_attention else LayerWidth(0, 0, width.channels)


@lru_cache(maxsize=65536)
def _shared(kv_groups: int, heads_per_group: int, channels: int) -> LayerWidth:
    """One object for all layers of that width: a large journal has millions of layers, and few widths."""
    return LayerWidth(kv_groups, heads_per_group, channels)


_LATER: dict[str, Any] = {"qk_norm_whole": False, "sublayer_norms": 1, "unlike": ()}
"""Fields of a shape that came after files with shapes were written, and what they were before."""


@dataclass(frozen=True)
class ModelShape:
    """What parameter counting needs to know of a decoder-only model.

    ``head_dim`` counts the elements of one head; the flags say which optional parameters the
    family has. Counts are of real parameters: biases and norms included. Where layers differ, as those of a
    model that was pruned before, ``kv_groups``, ``heads_per_group`` and ``channels`` are the most of any.

    Raises:
        ValueError: the widths of unlike layers are not as many as the layers, or not what the most say.
    """

    family: str
    layers: int
    hidden: int
    kv_groups: int
    heads_per_group: int
    head_dim: int
    channels: int
    vocabulary: int
    tied_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    """Whether norms of queries and keys have a weight for every head's elements, not one head's."""
    sublayer_norms: int = 1
    """Norms of the hidden size that each sublayer has, before or behind it."""
    unlike: tuple[LayerWidth, ...] = ()
    """The width of every layer, where they differ; a site that a width drops is none of the model's."""

    def __post_init__(self) -> None:
        if not self.unlike:
            return
        widths = tuple(_normal(LayerWidth(*width)) for width in self.unlike)
        if len(widths) != self.layers or tuple(map(max, zip(*widths, strict=True))) != self.widest:
            raise ValueError(
                f"{len(widths)} widths of layers, the most of each {[*map(max, zip(*widths, strict=True))]}; "
                f"expected {self.layers}, and {list(self.widest)}"
            )
        object.__setattr__(self, "unlike", () if set(widths) == {self.widest} else widths)

    def to_json(self) -> dict[str, Any]:
        """Its fields; those that came later only where they are not as before, so that keys stay."""
        found = asdict(self)
        return {k: v for k, v in found.items() if k not in _LATER or v != _LATER[k]}

    @property
    def widest(self) -> LayerWidth:
        """The most that any layer has of each: what every layer has, unless they are unlike."""
        return LayerWidth(self.kv_groups, self.heads_per_group, self.channels)

    @cached_property
    def widths(self) -> tuple[LayerWidth, ...]:
        """What each layer of the dense model has."""
        return self.unlike or (self.widest,) * self.layers

    def width(self, site: Site) -> Width:
        """What a site of the dense model has."""
        return self.widths[site.layer].of(site.kind)

    def sites(self) -> Iterator[Site]:
        """Every site, in the order in which data passes."""
        for layer, width in enumerate(self.widths):
            for kind in Kind:
                if width.keeps(kind):
                    yield Site(layer, kind)

    def attention_parameters(self, kv_groups: int, heads_per_group: int) -> int:
        """Parameters of an attention sublayer of that width, its norms included."""
        if kv_groups == 0 or heads_per_group == 0:
            return 0
        q_rows = kv_groups * heads_per_group * self.head_dim
        kv_rows = 2 * kv_groups * self.head_dim
        total = self.hidden * (2 * q_rows + kv_rows)  # q, o, k, v
        total += self.sublayer_norms * self.hidden
        total += (q_rows + kv_rows) if self.qkv_bias else 0
        total += self.hidden if self.o_bias else 0
        if self.qk_norm:
            total += q_rows + kv_rows // 2 if self.qk_norm_whole else 2 * self.head_dim
        return total

    def mlp_parameters(self, channels: int) -> int:
        """Parameters of an MLP of that width, its norms included."""
        if channels == 0:
            return 0
        bias = 2 * channels + self.hidden if self.mlp_bias else 0
        return 3 * self.hidden * channels + self.sublayer_norms * self.hidden + bias

    def site_parameters(self, kind: Kind, width: LayerWidth) -> int:
        """Parameters that a site of that kind keeps in a layer of that width."""
        if kind is Kind.ATTENTION:
            return self.attention_parameters(width.kv_groups, width.heads_per_group)
        return self.mlp_parameters(width.channels)

    def dense_parameters(self, site: Site) -> int:
        """Parameters of a site of the dense model."""
        return self.site_parameters(site.kind, self.widths[site.layer])

    @cached_property
    def layer_parameters(self) -> list[int]:
        """Parameters of each layer of the dense model."""
        return [sum(self.site_parameters(kind, width) for kind in Kind) for width in self.widths]

    @cached_property
    def decoder_parameters(self) -> int:
        """All parameters of the dense decoder layers; embeddings, final norm and head not counted."""
        return sum(self.layer_parameters)

    @property
    def outside_parameters(self) -> int:
        """The parameters outside the decoder layers: embeddings, final norm and head."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)
        return self.hidden + embeddings

    @property
    def total_parameters(self) -> int:
        """All parameters of the dense model."""
        return self.decoder_parameters + self.outside_parameters

    def dense(self) -> Architecture:
        """The architecture that keeps everything."""
        return Architecture(self.widths)


class _LayerParameters(dict[LayerWidth, int]):
    """Parameters that a layer keeps by its width, counted once: a large journal has millions of layers."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape

    def __missing__(self, width: LayerWidth) -> int:
        self[width] = sum(self._shape.site_parameters(kind, width) for kind in Kind)
        return self[width]


@lru_cache(maxsize=16)
def _layer_parameters(shape: ModelShape) -> _LayerParameters:
    return _LayerParameters(shape)


@dataclass(frozen=True)
class Architecture:
    """A width for every site of a model. Immutable, hashable, JSON, with a stable id.

    An attention that is dropped has the width (0, 0), however it is given: equal networks are equal.

    >>> shape = ModelShape("llama", 2, 64, 2, 3, 8, 96, vocabulary=100, tied_embeddings=True)
    >>> cut = Architecture((LayerWidth(2, 3, 48), LayerWidth(0, 3, 96)))
    >>> cut.widths[1]
    LayerWidth(kv_groups=0, heads_per_group=0, channels=96)
    >>> cut == Architecture.from_json(cut.to_json()), cut.id
    (True, 'd4677dae9db0')
    >>> round(cut.overall_ratio(shape), 3), round(cut.site_ratio(shape, Site(0, Kind.MLP)), 3)
    (0.327, 0.498)
    """

    widths: tuple[LayerWidth, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(map(_normal, self.widths)))

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the widths."""
        text = ",".join([f"[{g},{h},{c}]" for g, h, c in self.widths])
        return hashlib.sha256(f"[{text}]".encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, widths: Sequence[Sequence[int]]) -> Architecture:
        """The inverse of `to_json`.

        Raises:
            ValueError: a layer's widths are not three integers of at least zero.
        """
        found = []
        for layer, width in enumerate(widths):
            if len(width) != 3 or any(type(w) is not int or w < 0 for w in width):
                raise ValueError(
                    f"layer {layer} has widths {list(width)!r}; "
                    "expected [kv_groups, heads_per_group, channels], integers of at least 0"
                )
            found.append(_shared(*width))
        return cls(tuple(found))

    def to_json(self) -> list[list[int]]:
        return [list(width) for width in self.widths]

    def kept_layers(self) -> list[int]:
        """The layers that keep anything."""
        return [i for i, width in enumerate(self.widths) if width.has_attention or width.has_mlp]

    def kept_parameters(self, shape: ModelShape) -> int:
        """Decoder-layer parameters that remain."""
        return sum(map(_layer_parameters(shape).__getitem__, self.widths))

    def total_parameters(self, shape: ModelShape) -> int:
        """All parameters that remain, those outside the decoder layers included."""
        return self.kept_parameters(shape) + shape.outside_parameters

    def overall_ratio(self, shape: ModelShape) -> float:
        """The fraction of all decoder-layer parameters removed, in [0, 1]."""
        return 1 - self.kept_parameters(shape) / shape.decoder_parameters

    def site_ratio(self, shape: ModelShape, site: Site) -> float:
        """The fraction of that site's parameters removed, in [0, 1]; 0 of one that the model has not."""
        kept = shape.site_parameters(site.kind, self.widths[site.layer])
        dense = shape.dense_parameters(site)
        return 1 - kept / dense if dense else 0.0

    def check(self, shape: ModelShape) -> None:
        """Raise ValueError unless the architecture fits a model of that shape."""
        if len(self.widths) != shape.layers:
            raise ValueError(
                f"architecture {self.id} has {len(self.widths)} layers; the model has {shape.layers}"
            )
        for layer, (width, dense) in enumerate(zip(self.widths, shape.widths, strict=True)):
            if any(ours > theirs for ours, theirs in zip(width, dense, strict=True)):
                raise ValueError(
                    f"architecture {self.id}, layer {layer}: {width} exceeds the model's {dense}"
                )
