"""What the proof found, dense against pruned, and how: as data, as JSON and as a table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.files import read_dataclass, write_json

SCHEMA, VERSION = "prunecast.proof", 3


@dataclass(frozen=True)
class Spread:
    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.minimum:.4g} to {self.maximum:.4g})"


@dataclass(frozen=True)
class Figures:
    """One artifact. Speeds are tokens a second; memory is what loading and running it added at most to
    its process; `kl` (nats a token) and `logit_difference` compare with the folder of the same weights."""

    parameters: int
    size_bytes: int
    memory_bytes: int
    prefill: Spread
    decode: Spread
    perplexity: float
    kl: float
    logit_difference: float


@dataclass(frozen=True)
class Comparison:
    """Dense and pruned in one runtime; speed-ups are those of the rounds, dense over pruned time."""

    runtime: str
    weights: str
    dense: Figures
    pruned: Figures
    prefill_speedup: Spread
    decode_speedup: Spread
    ideal_prefill: float
    ideal_decode: float
    launching: Sequence[float] = (0.0, 0.0)
    """The parts of the pruned model's prefill and decoding on a GPU in which Python launched its kernels."""

    @property
    def name(self) -> str:
        return f"{self.runtime}, {self.weights}"

    @property
    def prefill_share(self) -> float:
        """The median speed-up over the ideal one."""
        return self.prefill_speedup.median / self.ideal_prefill

    @property
    def decode_share(self) -> float:
        return self.decode_speedup.median / self.ideal_decode


@dataclass(frozen=True)
class Conditions:
    """What every model was asked, and where: a prompt at once, then a continuation token by token."""

    prompt: int
    continuation: int
    rounds: int
    windows: int
    window_tokens: int
    text: str
    threads: int
    machine: str
    seconds: int
    gpu: str = ""
    """Where PyTorch ran; nothing where that was the CPU."""

    def words(self) -> str:
        """The conditions in a few sentences."""
        cpu = f"{self.threads} thread{'s' if self.threads > 1 else ''} of a CPU ({self.machine})"
        where = f"{self.gpu} in PyTorch, else {cpu}" if self.gpu else cpu
        return (
            f"A prompt of {self.prompt} tokens processed at once, then {self.continuation} one by one, "
            f"on {where}; dense and pruned in turn, {self.rounds} rounds after "
            "one that does not count: median, minimum to maximum. Memory is what loading and running the "
            f"model added at most to a process of its own{', on the GPU' if self.gpu else ''}. "
            f"Perplexity and agreement on {self.windows} windows of {self.window_tokens} tokens of "
            f"{self.text}. Took {self.seconds} s."
        )


@dataclass(frozen=True)
class Proof:
    """`remarks` say what was not measured and why, and what looks wrong."""

    comparisons: tuple[Comparison, ...] = ()
    conditions: Conditions | None = None
    remarks: tuple[str, ...] = ()


def write(path: Path, proof: Proof) -> None:
    """Sizes in bytes, speeds in tokens a second."""
    write_json(path, SCHEMA, VERSION, asdict(proof))


def read(path: Path) -> Proof:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """
    return read_dataclass(path, SCHEMA, VERSION, Proof, "export")


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons in Markdown; speeds as median (minimum to maximum)."""
    rows = [
        "| runtime | model | parameters | on disk | memory | prefill, tokens/s | decode, tokens/s "
        "| perplexity | KL to the folder |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    ]
    for c in comparisons:
        for name, figures in (("dense", c.dense), ("pruned", c.pruned)):
            rows.append(f"| {c.runtime} {c.weights} | {name} | {_cells(figures)} |")
    return "\n".join([*rows, "", speedups(comparisons)])


def _cells(figures: Figures) -> str:
    return " | ".join(
        (
            f"{figures.parameters / 1e6:.1f} M",
            f"{figures.size_bytes / 1e6:.1f} MB",
            f"{figures.memory_bytes / 1e6:.0f} MB",
            str(figures.prefill),
            str(figures.decode),
            f"{figures.perplexity:.3f}",
            f"{figures.kl:.1e}",
        )
    )


def speedups(comparisons: Sequence[Comparison]) -> str:
    """How much faster the pruned model is, beside the ideal, in Markdown."""
    rows = [
        "| runtime | prefill: times as fast | ideal | of the ideal | decode: times as fast | ideal "
        "| of the ideal |\n| --- | --- | --- | --- | --- | --- | --- |"
    ]
    for c in comparisons:
        prefill = f"{c.prefill_speedup} | {c.ideal_prefill:.3f} | {c.prefill_share:.2f}"
        decode = f"{c.decode_speedup} | {c.ideal_decode:.3f} | {c.decode_share:.2f}"
        rows.append(f"| {c.runtime} {c.weights} | {prefill} | {decode} |")
    return "\n".join(rows)


def flat(proof: Proof) -> dict[str, float]:
    """Speed-ups and shares under MLflow's flat names: ``proof.pytorch_float32.prefill_speedup``."""
    found: dict[str, float] = {}
    for c in proof.comparisons:
        name = f"proof.{c.runtime}_{c.weights}".lower().replace("llama.cpp", "llama_cpp")
        found |= {
            f"{name}.prefill_speedup": c.prefill_speedup.median,
            f"{name}.prefill_share_of_ideal": c.prefill_share,
            f"{name}.decode_speedup": c.decode_speedup.median,
            f"{name}.decode_share_of_ideal": c.decode_share,
        }
    return found
