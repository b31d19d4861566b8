"""How much memory an exported model needs, measured in a process that holds nothing else.

    python -m stages.export.benchmark.memory PATH THREADS PROMPT CONTINUATION DEVICE

loads a folder or GGUF file, runs a prompt and a continuation of so many tokens, and prints by how many
bytes the process's largest resident size exceeds what it held before; of a GPU, the most that PyTorch took.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import stages
from stages.export.benchmark.runtimes import open_runtime
from stages.files import InputError


def peak_memory(path: Path, threads: int, prompt: int, continuation: int, device: str = "cpu") -> int:
    """Run this module in a fresh process; bytes.

    Raises:
        InputError: the model cannot be loaded or run there.
    """
    arguments = [str(path.resolve()), *(str(n) for n in (threads, prompt, continuation)), device]
    root = Path(stages.__file__).parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "stages.export.benchmark.memory", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise InputError(f"{path} does not run in a fresh process:\n{tail}")
    return int(done.stdout)


def main() -> None:
    path = Path(sys.argv[1])
    threads, prompt, continuation = (int(argument) for argument in sys.argv[2:5])
    device = sys.argv[5] if path.is_dir() else "cpu"
    if path.is_dir():
        import transformers.models.llama.modeling_llama  # noqa: F401  (its code is not the model's memory)
    else:
        import llama_cpp  # noqa: F401
    before = _largest_resident()
    model = open_runtime(path, threads, prompt + continuation, device=device)
    model.prefill([0] * prompt)
    model.decode([0] * continuation)
    if device == "cuda":
        import torch

        print(torch.cuda.max_memory_allocated())
    else:
        print(_largest_resident() - before)


def _largest_resident() -> int:
    """The largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage counts the parent before exec too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    main()
