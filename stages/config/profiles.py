"""Profiles: whole params files side by side, of which one is active.

    python -m stages.config.profiles            # lists them
    python -m stages.config.profiles paper      # makes that one active

The active profile is params.yaml, the one file that DVC tracks, `dvc exp run -S` writes and the stages
read; the others are NAME.yaml, NAME being the key `profile` of the file. A switch renames two
files: each profile stays one file, which keeps its own edits, and the same command goes back.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from stages.config.document import read_yaml
from stages.config.params import load_params
from stages.files import InputError, writing
from stages.stage import command

ACTIVE = "params.yaml"


def find(folder: Path = Path()) -> dict[str, Path]:
    """The profiles of a folder by name, the active one first.

    Raises:
        InputError: a file names no profile, or another than its own name says, or two name the same.
    """
    found: dict[str, Path] = {}
    for path in (folder / ACTIVE, *sorted(folder.glob("params.*.yaml"))):
        if not path.exists():  # the active one, where a switch was killed half-way
            continue
        name = _profile(path)
        if path.name not in (ACTIVE, f"params.{name}.yaml"):
            raise InputError(f"{path} says that it is the profile {name!r}; rename it params.{name}.yaml")
        if name in found:
            raise InputError(
                f"{found[name]} and {path} both are the profile {name!r}; remove one of them, or give "
                "one another name, in its key `profile` and in its file's name"
            )
        found[name] = path
    return found


def path_of(name: str, folder: Path = Path()) -> Path:
    """The file of a profile.

    Raises:
        InputError: there is no such profile.
    """
    found = find(folder)
    if name not in found:
        raise InputError(
            f"there is no profile {name!r}; there are: {', '.join(found) or 'none'}. "
            "If `dvc exp apply` took its file away, `git checkout HEAD -- 'params*.yaml'` brings it back"
        )
    return found[name]


def switch(name: str, folder: Path = Path()) -> bool:
    """Make a profile active; whether it was not before.

    Started again after a kill, it finishes what was begun.

    Raises:
        InputError: there is no such profile, or its params are wrong; nothing was changed.
    """
    wanted, active = path_of(name, folder), folder / ACTIVE
    load_params(wanted)
    if wanted == active:
        return False
    with writing(active):
        if active.exists():
            active.rename(folder / f"params.{_profile(active)}.yaml")
        wanted.rename(active)
    return True


def _profile(path: Path) -> str:
    """The key `profile` of a file, whose other keys may be wrong."""
    content = read_yaml(path)
    name = content.get("profile") if isinstance(content, Mapping) else None
    if not isinstance(name, str):
        raise InputError(f"{path}: profile is {name!r}; expected a name, such as default")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.config.profiles")
    parser.add_argument("profile", nargs="?", help="the profile to make active; without it, list them")
    wanted: str | None = parser.parse_args().profile
    if wanted:
        before = next(iter(find()), "")
        changed = switch(wanted)
        print(f"{ACTIVE} is the profile {wanted}" + ("" if changed else " already"))
        if changed and before:
            print(f"{before} is params.{before}.yaml; `make profile PROFILE={before}` goes back")
        return
    for name, path in find().items():
        print(f"{'*' if path.name == ACTIVE else ' '} {name:12} {path}")


if __name__ == "__main__":
    command("profile", main)
