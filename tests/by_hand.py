"""A decoder written out in loops, which tests compare the others with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def run_by_hand(state: Mapping[str, torch.Tensor], config: Any, tokens: list[int]) -> torch.Tensor:
    """Logits of a (pruned) state dict by explicit loops in float64; widths are read off the tensors.

    Shares no code with the elastic network or transformers: rotary embeddings are complex numbers here,
    attention is one query at a time. Default rope only.
    """
    tensors = {name: tensor.double() for name, tensor in state.items()}
    d, half = config.head_dim, config.head_dim // 2
    theta = config.rope_parameters["rope_theta"]
    frequencies = torch.tensor([theta ** (-2 * i / d) for i in range(half)], dtype=torch.float64)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale: torch.Tensor = (x.square().mean() + config.rms_norm_eps).rsqrt()
        return x * scale * tensors[name]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        bias = tensors.get(f"{name}.bias")
        return tensors[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def turned(x: torch.Tensor, position: int, norm_name: str) -> torch.Tensor:
        x = norm(x, norm_name) if norm_name in tensors else x
        turn = torch.polar(torch.ones_like(frequencies), frequencies * position)
        product = torch.complex(x[:half], x[half:]) * turn
        return torch.cat((product.real, product.imag))

    states = [tensors["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        if f"{at}self_attn.q_proj.weight" in tensors:
            inputs = [norm(x, f"{at}input_layernorm.weight") for x in states]
            queries, keys, values = (
                [linear(x, f"{at}self_attn.{part}_proj").view(-1, d) for x in inputs] for part in "qkv"
            )
            per_group = len(queries[0]) // len(keys[0])
            for position in range(len(states)):
                mixed = []
                for head, raw in enumerate(queries[position]):
                    group = head // per_group
                    query = turned(raw, position, f"{at}self_attn.q_norm.weight")
                    products = [
                        query @ turned(keys[past][group], past, f"{at}self_attn.k_norm.weight") / d**0.5
                        for past in range(position + 1)
                    ]
                    shares = torch.stack(products).softmax(0)
                    mixed.append(shares @ torch.stack([values[past][group] for past in range(position + 1)]))
                states[position] = states[position] + linear(torch.cat(mixed), f"{at}self_attn.o_proj")
        if f"{at}mlp.up_proj.weight" in tensors:
            for position, x in enumerate(states):
                x = norm(x, f"{at}post_attention_layernorm.weight")
                gate, up = linear(x, f"{at}mlp.gate_proj"), linear(x, f"{at}mlp.up_proj")
                product = gate / (1 + (-gate).exp()) * up
                states[position] = states[position] + linear(product, f"{at}mlp.down_proj")
    output = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return torch.stack([output @ norm(x, "model.norm.weight") for x in states])
