"""Bits per byte of a text: what models with unlike tokenizers can be compared by."""

from __future__ import annotations

import math

from stages.metrics.metric import RescaledMetric, TextLikelihoods
from stages.metrics.perplexity import LOG_PPL


def _bits_per_byte(nats: float, text: TextLikelihoods) -> float:
    bits = nats * text.log_likelihoods.numel() / math.log(2)
    return bits / text.size_bytes


BITS_PER_BYTE = RescaledMetric(
    name="bpb",
    title="bits per byte",
    unit="bits per byte",
    lower_is_better=True,
    format=lambda bits: f"{bits:.4f}",
    law=1,
    base=LOG_PPL,
    rescaled=_bits_per_byte,
    # Bits per byte are log perplexity times what is fixed: tokens a byte, and bits a nat.
    steepness=lambda bits, nats: bits / nats,
)
