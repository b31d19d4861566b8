"""The block recipe: what a family's decoder computes, as far as the elastic network can compute it.

With s the scale of the residual stream, every layer is

    x = x + s * attention(norm(x))
    x = x + s * mlp(norm(x)),    mlp(x) = down(activation(gate(x)) * up(x))

RMS norms stand before each sublayer, behind each, or both, and before the head. What a recipe cannot say is
refused when a model's configuration is read, by `usual_recipe` or by the recipe itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stages.families.configuration import (
    Config,
    ConfigurationError,
    Finite,
    Key,
    Positive,
    Size,
    completed,
)

Rotary = Mapping[str, Any]
"""A rotary embedding in the words of transformers' ``rope_parameters``."""

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_SCALED = {"rope_theta": Key(Positive), "factor": Key(Positive)}
FACTORS = ("short_factor", "long_factor")
"""What longrope divides each frequency by, in texts up to the length of its training and in longer ones."""
_TRAINED = {"original_max_position_embeddings": Key(Size)}
ROTARY_TYPES: Mapping[str, Mapping[str, Key]] = {
    "default": {"rope_theta": Key(Positive)},
    "linear": _SCALED,
    "llama3": {**_SCALED, **_TRAINED, "low_freq_factor": Key(Positive), "high_freq_factor": Key(Positive)},
    "yarn": {
        **_SCALED,
        **_TRAINED,
        **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), Key(Positive | None, None)),
        **dict.fromkeys(("mscale", "mscale_all_dim"), Key(Finite | None, None)),
        "truncate": Key(bool | None, None),
    },
    "longrope": {
        "rope_theta": Key(Positive),
        **_TRAINED,
        **dict.fromkeys(FACTORS, Key(list[Positive])),
        **dict.fromkeys(("factor", "attention_factor"), Key(Positive | None, None)),
    },
}
"""The types whose frequencies no text changes for another, and the keys of each: those of dynamic depend on
the longest text that was seen."""
_LATER = {
    "norm_offset": 0.0,
    "norm_in_float32": False,
    "norm_before": True,
    "norm_after": False,
    "qk_norm_whole": False,
    "rotary_in_float32": False,
    "embedding_scale_rounded": False,
}
"""Fields of a recipe that came after journals had been written, and what they were before."""
ATTENTION_TYPES = ("full_attention", "sliding_attention")


class UnsupportedPieceError(Exception):
    """A configuration asks for what no recipe can say; the message names the piece and what is supported."""


@dataclass(frozen=True)
class BlockRecipe:
    """What every decoder layer of a model computes, and what stands around the layers.

    Raises:
        UnsupportedPieceError: the activation or a rotary embedding is none that the network computes.
    """

    rotary: tuple[Rotary | None, ...]
    """The rotary embedding of each layer; None where a layer's attention sees no positions."""
    windows: tuple[int | None, ...]
    """The most tokens that each layer's attention looks back on, itself included; None is all."""
    activation: str = "silu"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    """What is added to the weights of norms."""
    norm_in_float32: bool = False
    """Whether norms are scaled before they are rounded to the model's type, not after."""
    norm_before: bool = True
    """Whether a norm stands before each sublayer."""
    norm_after: bool = False
    """Whether what each sublayer makes is normed before it is added."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether queries and keys have RMS norms before they are rotated, each head by itself."""
    qk_norm_whole: bool = False
    """Whether those norms are over all heads together."""
    embedding_scale: float = 1.0
    rotary_in_float32: bool = False
    """Whether heads are turned by angles that are not rounded to the model's type."""
    embedding_scale_rounded: bool = False
    """Whether that scale is rounded to the model's type."""
    residual_scale: float = 1.0
    attention_scale: float | None = None
    """What scores of attention are multiplied by; None is one over the root of the head size."""
    logits_scale: float = 1.0
    """What logits are multiplied by."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise UnsupportedPieceError(
                f"has the activation {self.activation!r}; supported: {', '.join(ACTIVATIONS)}"
            )
        for rotary in self.rotary:
            if rotary is not None:
                refuse_rotary(rotary)

    def to_json(self) -> dict[str, Any]:
        """Its fields; those that came later only where they are not as before, so that keys stay."""
        return {k: v for k, v in asdict(self).items() if k not in _LATER or v != _LATER[k]}

    @property
    def scaled(self) -> dict[str, float]:
        """The scales that are not as usual, by name."""
        usual = {"embedding_scale": 1.0, "residual_scale": 1.0, "attention_scale": None, "logits_scale": 1.0}
        return {name: getattr(self, name) for name, u in usual.items() if getattr(self, name) != u}


def usual_recipe(config: Config, **pieces: Any) -> BlockRecipe:
    """A recipe of what transformers' decoders share, with a family's own `pieces` in place of the usual.

    Raises:
        UnsupportedPieceError: the configuration asks for a mixture of experts, or for what a recipe cannot
            say.
        ConfigurationError: the rotary embedding lacks a number or holds a bad one.
    """
    refuse_experts(config)
    layers = int(config["num_hidden_layers"])
    activation = config.get("hidden_act") or "silu"
    if "rotary" not in pieces:
        pieces["rotary"] = (usual_rotary(config),) * layers
    usual: dict[str, Any] = {
        "windows": (None,) * layers,
        "activation": "silu" if activation == "swish" else activation,
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
    }
    return BlockRecipe(**usual | pieces)


def refuse_experts(config: Config) -> None:
    """Raise UnsupportedPieceError if the configuration is of a mixture of experts."""
    for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        if config.get(name):
            raise UnsupportedPieceError(
                f"is a mixture of experts ({name}: {config[name]}), whose router chooses among MLPs; "
                "supported: one MLP a layer"
            )


def usual_rotary(config: Config, partial: bool = False) -> Rotary:
    """The rotary embedding of all layers, in the words of transformers 5, also where those of 4 are given.

    `partial` says that the family turns a part of each head where it is told to (``partial_rotary_factor``).

    Raises:
        UnsupportedPieceError: its type is none that the network computes, or each kind of layer has its own;
            or a part of each head is to be turned.
        ConfigurationError: it lacks a number or holds a bad one.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rotary = _rotary(config, name, config.get(name) or {})
    if not partial:
        refuse_partial(rotary)
    elif "partial_rotary_factor" in rotary and (
        (turned := _turned(config, rotary)) % 2 or not 0 < turned <= _head(config)
    ):
        raise ConfigurationError(
            f"partial_rotary_factor is {rotary['partial_rotary_factor']}, which turns {turned} elements of a "
            f"head of {_head(config)}; expected an even number of them"
        )
    return rotary


def _head(config: Config) -> int:
    """Elements of a head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def _turned(config: Config, rotary: Rotary) -> int:
    """Elements of a head that are turned."""
    return int(_head(config) * rotary.get("partial_rotary_factor", 1.0))


def _rotary(config: Config, name: str, given: Rotary) -> Rotary:
    """The rotary embedding that a configuration gives under a name."""
    if nested := [key for key, value in given.items() if isinstance(value, dict)]:
        raise UnsupportedPieceError(
            f"has a rotary embedding for each kind of layer ({name}: {', '.join(nested)})"
        )
    kind: Any = given.get("rope_type", given.get("type", "default"))
    rotary: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10000.0), **given, "rope_type": kind}
    if config.get("partial_rotary_factor") is not None:
        rotary.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    refuse_rotary(rotary)
    keys = ROTARY_TYPES[kind]
    if "original_max_position_embeddings" in keys:
        stated = config.get("original_max_position_embeddings")
        usual = given.get("original_max_position_embeddings", config.get("max_position_embeddings"))
        rotary["original_max_position_embeddings"] = usual if stated is None else stated
    completed(rotary, keys, inside=f"{name}.")
    if kind == "longrope":
        _check_factors(config, name, rotary)
        longer = (config.get("max_position_embeddings") or 0) / rotary["original_max_position_embeddings"]
        rotary["factor"] = rotary.get("factor") or longer
    return rotary


def _check_factors(config: Config, name: str, rotary: Rotary) -> None:
    """Raise ConfigurationError unless there is a factor for every frequency."""
    expected = _turned(config, rotary) // 2
    for key in FACTORS:
        if (found := len(rotary[key])) != expected:
            raise ConfigurationError(
                f"{name}.{key} has {found} numbers; expected {expected}, one for every two elements of a "
                "head that are turned"
            )


def refuse_rotary(rotary: Rotary) -> None:
    """Raise UnsupportedPieceError if the network computes no rotary embedding of that type."""
    kind = rotary.get("rope_type", "default")
    if kind not in tuple(ROTARY_TYPES):
        raise UnsupportedPieceError(f"has the rope type {kind!r}; supported: {', '.join(ROTARY_TYPES)}")


def refuse_partial(rotary: Rotary) -> None:
    """Raise UnsupportedPieceError if a part of each head is turned."""
    if (share := rotary.get("partial_rotary_factor", 1.0)) != 1:
        raise UnsupportedPieceError(
            f"rotates {share} of each head (partial_rotary_factor); supported: the whole head"
        )


def rotary_by_kind(config: Config, kinds: Sequence[str], **bases: float | None) -> tuple[Rotary, ...]:
    """The rotary embedding of each layer by its kind of attention, in the words of transformers 5 or of 4.

    `bases` has each kind's ``rope_theta`` where the configuration gives none for it; the scaling of
    transformers 4 (``rope_scaling``) is that of full attention.

    Raises:
        UnsupportedPieceError, ConfigurationError: as `usual_rotary`, of any kind.
    """
    found, scaling = {}, config.get("rope_scaling")
    nested = config.get("rope_parameters") or {}
    for kind, base in bases.items():
        given = {"rope_theta": base, **(nested.get(kind) or {"rope_type": "default"})}
        scaled = scaling and kind == "full_attention"
        found[kind] = _rotary(
            config,
            "rope_scaling" if scaled else "rope_parameters",
            {**given, **(scaling or {})} if scaled else given,
        )
        refuse_partial(found[kind])
    return tuple(found[kind] for kind in kinds)


def kinds_of_attention(config: Config, usual: Sequence[str]) -> Sequence[str]:
    """The kind of attention of each layer: ``layer_types``, or the `usual` ones where it is left out.

    Raises:
        ConfigurationError: ``layer_types`` has not one of the two kinds of attention for each layer.
    """
    layers, kinds = int(config["num_hidden_layers"]), config.get("layer_types")
    kinds = usual if kinds is None else kinds
    if len(kinds) != layers or not set(kinds) <= set(ATTENTION_TYPES):
        raise ConfigurationError(
            f"layer_types has {len(kinds)} entries, of the kinds {', '.join(sorted(set(kinds)))}; expected "
            f"{layers} (num_hidden_layers) of {' or '.join(ATTENTION_TYPES)}"
        )
    return kinds


def sliding_by_layer(config: Config) -> tuple[int | None, ...]:
    """The windows of a family with ``use_sliding_window``, whose later layers slide.

    Raises:
        ConfigurationError: ``layer_types`` has not one of the two kinds of attention for each layer.
    """
    layers = int(config["num_hidden_layers"])
    window = config["sliding_window"] if config.get("use_sliding_window") else None
    first = int(config.get("max_window_layers", 28))
    usual = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    kinds = kinds_of_attention(config, usual)
    return windows_by_kind(window, kinds)


def windows_by_kind(window: int | None, kinds: Sequence[str]) -> tuple[int | None, ...]:
    """The window of each layer by its kind of attention: full attention has none."""
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
