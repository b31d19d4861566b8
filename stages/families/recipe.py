"""The block recipe: what a family's decoder computes, as far as the elastic network can compute it.

With s the scale of the residual stream, every layer is

    x = x + s * attention(norm(x))
    x = x + s * mlp(norm(x)),    mlp(x) = down(activation(gate(x)) * up(x))

RMS norms stand before each sublayer and before the head. What a recipe cannot say is refused when a
model's configuration is read, by `usual_recipe` or by the recipe itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
"""A configuration under the names of Hugging Face's config.json; what it leaves out is as usual."""

Rotary = Mapping[str, Any]
"""A rotary embedding in the words of transformers' ``rope_parameters``."""

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
"""The types whose frequencies do not depend on the length of the text; those of dynamic and longrope do."""


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
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether each head's queries and keys have an RMS norm of their own before they are rotated."""
    embedding_scale: float = 1.0
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
            kind = "default" if rotary is None else rotary.get("rope_type", "default")
            if kind not in ROTARY_TYPES:
                raise UnsupportedPieceError(
                    f"has the rope type {kind!r}; supported: {', '.join(ROTARY_TYPES)}"
                )
            share = 1.0 if rotary is None else float(rotary.get("partial_rotary_factor", 1.0))
            if share != 1:
                raise UnsupportedPieceError(
                    f"rotates {share:g} of each head (partial_rotary_factor); supported: the whole head"
                )

    @property
    def scaled(self) -> dict[str, float]:
        """The scales that are not as usual, by name."""
        usual = {"embedding_scale": 1.0, "residual_scale": 1.0, "attention_scale": None, "logits_scale": 1.0}
        return {name: getattr(self, name) for name, u in usual.items() if getattr(self, name) != u}

    @property
    def narrowest(self) -> tuple[int, int] | None:
        """The first layer with the narrowest attention window, and that window; None if none has one."""
        found = [(window, layer) for layer, window in enumerate(self.windows) if window is not None]
        return (min(found)[1], min(found)[0]) if found else None


def usual_recipe(config: Config, **pieces: Any) -> BlockRecipe:
    """A recipe of what transformers' decoders share, with a family's own `pieces` in place of the usual.

    Raises:
        UnsupportedPieceError: the configuration asks for a mixture of experts, or for what a recipe cannot
            say.
    """
    refuse_experts(config)
    layers = int(config["num_hidden_layers"])
    activation = config.get("hidden_act") or "silu"
    usual: dict[str, Any] = {
        "rotary": (usual_rotary(config),) * layers,
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


def usual_rotary(config: Config) -> Rotary:
    """The rotary embedding of all layers, in the words of transformers 5, also where those of 4 are given."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    return {"rope_theta": config.get("rope_theta") or 10000.0, **given, "rope_type": kind}


def sliding_by_layer(config: Config) -> tuple[int | None, ...]:
    """The windows of a family with ``use_sliding_window``, whose later layers slide."""
    layers = int(config["num_hidden_layers"])
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = int(config.get("max_window_layers", 28))
    usual = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    kinds = config.get("layer_types") or usual
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
