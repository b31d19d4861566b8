"""Which recipes llama.cpp computes: what its architectures `llama` and `deci` are made of.

`deci` reads a width for every layer, and `llama` one for all. Both have no norms of queries and keys and no
scales but attention's usual one, gate with SiLU, and rotate every layer's heads alike.
"""

from __future__ import annotations

from stages.families.recipe import BlockRecipe, Rotary

_YARN_USUAL = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_YARN_READ = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", *_YARN_USUAL}


def refusal(family: str, recipe: BlockRecipe) -> str | None:
    """Why llama.cpp cannot hold a pruned model of that family and recipe; None if it can."""
    if recipe.qk_norm:
        return (
            f"{family} normalises queries and keys; llama.cpp's architecture with a width for "
            "every layer (deci) has no such norms"
        )
    if recipe.scaled:
        scales = ", ".join(f"{name} {value:g}" for name, value in recipe.scaled.items())
        return f"{family} has the scales {scales}; llama.cpp's architecture deci has none"
    if recipe.activation != "silu":
        return f"{family} has the activation {recipe.activation}; llama.cpp's architecture deci has silu"
    rotary = recipe.rotary[0]
    if rotary is None or any(other != rotary for other in recipe.rotary):
        return f"{family} has layers that rotate otherwise than others; llama.cpp's deci rotates all alike"
    if rotary["rope_type"] == "yarn" and (unusual := _unusual_yarn(rotary)):
        return f"the yarn rope sets {unusual}, which llama.cpp does not read alike"
    return None


def _unusual_yarn(rotary: Rotary) -> list[str]:
    """The settings of a yarn rope that are not the usual ones."""
    given = {key: value for key, value in rotary.items() if value is not None}
    return sorted(given.keys() - _YARN_READ) + [
        key for key, usual in _YARN_USUAL.items() if given.get(key, usual) != usual
    ]
