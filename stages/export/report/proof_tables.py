"""The proof of speed and size as the report and the model card print it."""

from __future__ import annotations

from dataclasses import dataclass

from stages.export.benchmark.comparison import Comparison, Figures, Proof, Spread
from stages.export.report.verdict import percent, signed_percent

Cell = tuple[str, str]
"""What is read first, and the small print under it."""
IDEAL = (
    "Times as fast: dense over pruned time, round by round. Ideal: if time were proportional to the work, "
    "which is FLOPs for a prompt, and bytes of weights read for each token after it, embedding and head "
    "counted in both."
)
AGREEMENT = (
    "Agreement compares a file with the Hugging Face folder of the same weights: the mean KL divergence of "
    "its predictions, in nats a token, and the largest difference of a logit."
)


@dataclass(frozen=True)
class ProofTable:
    """A runtime and type of weights: `rows` are dense, pruned, both compared, and the share of the ideal."""

    name: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


COLUMNS: tuple[Cell, ...] = (
    ("parameters", "with embeddings"),
    ("on disk", "weights"),
    ("memory", "at its peak"),
    ("prompt", "tokens a second"),
    ("generation", "tokens a second"),
    ("perplexity", "few windows"),
    ("agreement", "with the folder"),
)


def proof_tables(proof: Proof) -> list[ProofTable]:
    return [
        ProofTable(
            c.name,
            (
                ("dense", _figures(c.dense, c.runtime)),
                ("pruned", _figures(c.pruned, c.runtime)),
                ("compared", _against(c)),
                ("of the ideal", _shares(c)),
            ),
        )
        for c in proof.comparisons
    ]


def _figures(figures: Figures, runtime: str) -> tuple[Cell, ...]:
    agreement = ("–", "is the folder")
    if runtime != "PyTorch":
        agreement = (f"{figures.kl:.1e} nats", f"logits within {figures.logit_difference:.2g}")
    return (
        (f"{figures.parameters / 1e6:,.1f} M", ""),
        (f"{figures.size_bytes / 1e6:,.1f} MB", ""),
        (f"{figures.memory_bytes / 1e6:,.0f} MB", ""),
        _speed(figures.prefill),
        _speed(figures.decode),
        (f"{figures.perplexity:,.2f}", ""),
        agreement,
    )


def _speed(spread: Spread) -> Cell:
    low, middle, high = (_three(v) for v in (spread.minimum, spread.median, spread.maximum))
    return middle, f"{low} to {high}"


def _three(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _against(c: Comparison) -> tuple[Cell, ...]:
    dense, pruned = c.dense, c.pruned
    changes = [
        (signed_percent(100 * (ours / theirs - 1)), "")
        for ours, theirs in (
            (pruned.parameters, dense.parameters),
            (pruned.size_bytes, dense.size_bytes),
            (pruned.memory_bytes, dense.memory_bytes),
        )
    ]
    return (
        *changes,
        _times(c.prefill_speedup),
        _times(c.decode_speedup),
        (signed_percent(100 * (pruned.perplexity / dense.perplexity - 1)), ""),
        ("", ""),
    )


def _times(speedup: Spread) -> Cell:
    return f"{speedup.median:.2f} times as fast", f"{speedup.minimum:.2f} to {speedup.maximum:.2f}"


def _shares(c: Comparison) -> tuple[Cell, ...]:
    nothing = ("", "")
    prefill, decode = (
        (percent(share, 0), f"of {ideal:.2f} times")
        for share, ideal in ((c.prefill_share, c.ideal_prefill), (c.decode_share, c.ideal_decode))
    )
    return nothing, nothing, nothing, prefill, decode, nothing, nothing


def card(proof: Proof) -> str:
    """The speed-ups as a Markdown table, and how they were measured."""
    if not proof.comparisons or proof.conditions is None:
        return ""
    rows = [["", "on disk", "peak memory", "prompt", "of the ideal", "generation", "of the ideal"]]
    rows.append(["---", *["---:"] * 6])
    for c in proof.comparisons:
        disk, memory = (
            f"{getattr(c.dense, key) / 1e6:,.0f} → {getattr(c.pruned, key) / 1e6:,.0f} MB"
            for key in ("size_bytes", "memory_bytes")
        )
        speeds = []
        for speedup, share in (
            (c.prefill_speedup, c.prefill_share),
            (c.decode_speedup, c.decode_share),
        ):
            spread = f"({speedup.minimum:.2f} to {speedup.maximum:.2f})"
            speeds += [f"{speedup.median:.2f} times as fast {spread}", percent(share, 0)]
        rows.append([c.name, disk, memory, *speeds])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join(("Dense → pruned:", table, f"{proof.conditions.words()} {IDEAL}"))
