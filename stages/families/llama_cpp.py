"""llama.cpp's architectures: which recipes they compute, which files are read, and their names of tensors.

The architectures `llama`, `deci` and `openelm` are written. `deci` and `openelm` read a width for every
layer, `llama` one for all. `openelm` alone has norms of queries and keys; it ties the head to the embedding
and has no biases. None has a scale but attention's usual one; they gate with SiLU, and rotate every layer's
heads alike.
"""

from __future__ import annotations

from stages.architecture import ModelShape
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, Rotary

READ = {"gemma3": "gemma3_text", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Architectures of llama.cpp whose files are read, and the family of each."""

INTERLEAVED = ("llama",)
"""Architectures of llama.cpp that turn neighbouring elements of a head; transformers turns i with i + d/2."""

NORM_OFFSETS = {"gemma3": 1.0}
"""What an architecture's files have already added to the weights of norms."""

BLOCK = 32
"""Weights of a row that share a scale in Q8_0 and Q4_0."""
_YARN_USUAL = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_YARN_READ = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", *_YARN_USUAL}


def refusal(shape: ModelShape, recipe: BlockRecipe) -> str | None:
    """Why llama.cpp cannot hold a pruned model of that shape and recipe; None if it can."""
    family = shape.family
    if recipe.norm_after:
        return (
            f"{family} has norms behind its sublayers; llama.cpp has none in its architectures with a width "
            "for every layer (deci, openelm)"
        )
    if recipe.qk_norm:
        lacks = [
            "a head of its own" if not shape.tied_embeddings else "",
            "biases" if recipe.qkv_bias or recipe.o_bias or recipe.mlp_bias else "",
            "a llama3 rope" if any(r and r["rope_type"] == "llama3" for r in recipe.rotary) else "",
        ]
        if any(lacks):
            return (
                f"{family} normalises queries and keys and has {' and '.join(filter(None, lacks))}; "
                "llama.cpp's one architecture with such norms and a width for every layer (openelm) has not"
            )
    if recipe.scaled:
        scales = ", ".join(f"{name} {value:g}" for name, value in recipe.scaled.items())
        return f"{family} has the scales {scales}; llama.cpp's architecture deci has none"
    if recipe.activation != "silu":
        return f"{family} has the activation {recipe.activation}; llama.cpp's architecture deci has silu"
    rotary = recipe.rotary[0]
    if rotary is None or any(other != rotary for other in recipe.rotary):
        return f"{family} has layers that rotate otherwise than others; llama.cpp's deci rotates all alike"
    if rotary["rope_type"] == "longrope":
        return f"{family} has a longrope, whose factors the writer has no tensors for"
    if rotary.get("partial_rotary_factor", 1) != 1:
        return f"{family} turns a part of each head, which llama.cpp's deci is not seen to do alike"
    if rotary["rope_type"] == "yarn" and (unusual := _unusual_yarn(rotary)):
        return f"the yarn rope sets {unusual}, which llama.cpp does not read alike"
    return None


def _unusual_yarn(rotary: Rotary) -> list[str]:
    """The settings of a yarn rope that are not the usual ones."""
    given = {key: value for key, value in rotary.items() if value is not None}
    return sorted(given.keys() - _YARN_READ) + [
        key for key, usual in _YARN_USUAL.items() if given.get(key, usual) != usual
    ]


def tensor_names(family: Family, layers: int) -> dict[str, str]:
    """Hugging Face's names of all tensors that a model of that family may have, by llama.cpp's."""
    found = {
        "token_embd.weight": family.embedding,
        "output_norm.weight": family.final_norm,
        "output.weight": family.head,
    }
    of_layer = {
        "attn_norm": family.attention_norm, "attn_q": family.q, "attn_k": family.k, "attn_v": family.v,
        "attn_output": family.o, "attn_q_norm": family.q_norm, "attn_k_norm": family.k_norm,
        "ffn_norm": family.mlp_norm, "ffn_gate": family.gate, "ffn_up": family.up, "ffn_down": family.down,
        "post_attention_norm": family.attention_norm_after, "post_ffw_norm": family.mlp_norm_after,
    }  # fmt: skip
    for layer in range(layers):
        prefix = family.layer.format(layer=layer)
        for theirs, ours in ((name, found_as) for name, found_as in of_layer.items() if found_as):
            for part in ("weight", "bias"):
                found[f"blk.{layer}.{theirs}.{part}"] = f"{prefix}{ours}.{part}"
    return found
