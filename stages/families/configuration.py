"""The keys of config.json that decide a network: what each may hold, and what it means where it is left out.

transformers' own configuration classes say so too, but bring torch with them, which `sample` does without.
That both say the same of every family is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, ValidationError, create_model

Config = Mapping[str, Any]
"""A configuration under the names of Hugging Face's config.json."""

Size = Annotated[int, Field(ge=1, lt=2**31)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ConfigurationError(Exception):
    """A key of config.json is missing or holds what it must not; the message names it."""


class Key(NamedTuple):
    """A key of config.json: the type of its values, and the value that is meant where it is left out."""

    kind: Any
    default: Any = ...
    """``...``: it must be there. None is also what is meant where it is not known."""


USUAL_KEYS: Mapping[str, Key] = {
    "model_type": Key(str),
    "num_hidden_layers": Key(Layers),
    "hidden_size": Key(Size),
    "intermediate_size": Key(Size),
    "num_attention_heads": Key(Size),
    "num_key_value_heads": Key(Size | None, None),
    "head_dim": Key(Size | None, None),
    "vocab_size": Key(Size),
    "max_position_embeddings": Key(Size, None),
    "tie_word_embeddings": Key(bool, False),
    "hidden_act": Key(str, "silu"),
    "rms_norm_eps": Key(Positive, 1e-6),
    "attention_bias": Key(bool, False),
    "mlp_bias": Key(bool, False),
    "rope_theta": Key(Positive | None, 10000.0),
    "rope_parameters": Key(dict | None, None),
    "rope_scaling": Key(dict | None, None),
    "partial_rotary_factor": Key(Positive | None, None),
    "original_max_position_embeddings": Key(Size | None, None),
    "sliding_window": Key(Size | None, None),
    "use_sliding_window": Key(bool, False),
    "max_window_layers": Key(Annotated[int, Field(ge=0)], 28),
    "layer_types": Key(list[str] | None, None),
}
"""The keys that families share, as most of them mean them."""


def completed(config: Config, keys: Mapping[str, Key], inside: str = "") -> dict[str, Any]:
    """The configuration with every one of `keys`; `inside` is put before their names in errors.

    Raises:
        ConfigurationError: a key must be there and is not, or holds a value of another type or size.
    """
    fields: dict[str, Any] = {name: (key.kind, key.default) for name, key in keys.items()}
    model = create_model(
        "Configuration",
        __config__=ConfigDict(strict=True, protected_namespaces=()),
        **fields,
    )
    try:
        model.model_validate(dict(config))
    except ValidationError as error:
        wrong = {".".join(map(str, p["loc"][:1])): p for p in error.errors(include_url=False)}
        raise ConfigurationError("; ".join(_told(inside + name, p) for name, p in wrong.items())) from error
    return {name: key.default for name, key in keys.items()} | dict(config)


def _told(name: str, problem: Any) -> str:
    if problem["type"] == "missing":
        return f"{name} is missing"
    expected = str(problem["msg"]).removeprefix("Input should be ")
    return f"{name} is {_short(problem['input'])}; expected {expected}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
