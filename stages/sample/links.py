"""Links in a model's folder that lead out of it: what they name is not the model's, and may be a secret."""

from __future__ import annotations

from pathlib import Path


def leaves(path: Path, folder: Path) -> bool:
    """Whether a file of a model's folder is a link to a file elsewhere.

    Snapshots of the hub's cache link to the blobs of their own repository, which lie beside them.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    return not path.resolve().is_relative_to(root)
