"""What params can name: things of one kind, ours and those of extensions.

A kind of thing that people add (an importance, a sampler, an executor, …) has a `Registry`. Ours stand
in it as ``"module:attribute"``, as entry points do: their names are known at once, and a module is
imported when its thing is asked for, so that reading params never costs an import of torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def named(place: str) -> Any:
    """The thing of a ``"module:attribute"``, whose module is imported for it."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry:
    """Things by name. `key` is where params name one, for errors; `places` says where ours are.

    >>> samplers = Registry("search.sampler", {"random": "stages.search.samplers:uniform"})
    >>> samplers.add("mine", print)
    >>> samplers.names, samplers["random"].__name__
    (['random', 'mine'], 'uniform')
    """

    def __init__(self, key: str, ours: Mapping[str, str]) -> None:
        self.key = key
        self.places = dict(ours)
        self._things: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Every name, ours first."""
        return [*self.places, *(name for name in self._things if name not in self.places)]

    def add(self, name: str, thing: Any) -> None:
        """Enter a thing of an extension.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.names:
            raise ValueError(f"{self.key} has a {name!r} already; give yours another name")
        self._things[name] = thing

    def __getitem__(self, name: str) -> Any:
        """The thing of that name.

        Raises:
            KeyError: there is none; the message lists those that there are.
        """
        if name not in self._things:
            if name not in self.places:
                raise KeyError(f"{self.key} has no {name!r}; there are {', '.join(self.names)}")
            self._things[name] = named(self.places[name])
        return self._things[name]
