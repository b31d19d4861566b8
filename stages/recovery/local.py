"""The local stage of a training: every sublayer learns what the dense one adds, apart from all others.

Each sublayer that was kept reads the dense network's hidden states before it; its loss is the squared error
of what it adds, over the squares of what the dense one adds there. (Local distillation of blocks: Bercovich
et al. 2024, arXiv 2411.19146.)
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stages.architecture import Kind, Site
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.families import BlockRecipe
from stages.families.modeling_prunecast import skipped, sublayers

States = dict[Site, tuple[Tensor, Tensor]]
"""Hidden states (B, L, D) before and after a site."""


@torch.no_grad()
def states_of(teacher: Decoder, tokens: Tensor) -> States:
    """The dense network's states around every site, of tokens (B, L)."""
    batch = Batch.unasked(tokens)
    hidden, places = teacher.embed(tokens), teacher.places(batch)
    found: States = {}
    for site in teacher.shape.sites():
        full = teacher.shape.widths[site.layer]
        x = teacher.activations(site, full, hidden, places)
        after = teacher.output(site, full, x, onto=hidden)
        found[site] = hidden, after
        hidden = after
    return found


def local_loss(body: Any, tokens: Tensor, states: States, recipe: BlockRecipe) -> Tensor:
    """The mean over a student's sublayers of their normalised squared errors.

    `body` are transformers' modules without the head, run on tokens (B, L); `recipe` is the model's.
    """
    added: dict[Site, Tensor] = {}
    with ExitStack() as hooks:
        for site in (Site(index, kind) for index in range(len(body.layers)) for kind in Kind):
            if site.kind.value in skipped(body.config, site.layer):
                continue
            names = sublayers(body.config)[site.kind.value]
            module, *norms = (getattr(body.layers[site.layer], name) for name in names)
            first = norms[0] if recipe.norm_before else module
            last = norms[-1] if recipe.norm_after else module
            instead = partial(_instead, states[site][0])
            hooks.enter_context(first.register_forward_pre_hook(instead, with_kwargs=True))
            hooks.enter_context(last.register_forward_hook(partial(_noted, added, site)))
        body(input_ids=tokens, use_cache=False)
    errors = [_error(recipe.residual_scale * added[site], *states[site]) for site in added]
    return torch.stack(errors).mean() if errors else torch.zeros((), device=tokens.device)


def _instead(
    states: Tensor, _: Any, inputs: tuple[Tensor, ...], named: dict[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    if inputs:
        return (states.to(inputs[0].dtype), *inputs[1:]), named
    return (), {**named, "hidden_states": states.to(named["hidden_states"].dtype)}


def _noted(added: dict[Site, Tensor], site: Site, _: Any, __: Any, output: Any) -> None:
    added[site] = output[0] if isinstance(output, tuple) else output


def _error(added: Tensor, before: Tensor, after: Tensor) -> Tensor:
    wanted = after.float() - before.float()
    tiny = torch.finfo(torch.float32).tiny
    return (added.float() - wanted).square().sum() / wanted.square().sum().clamp(min=tiny)
