"""What the Hugging Face hub, the way to it and its cache refuse: the cause and the remedy, in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from stages.config.params import ModelSection
from stages.files import OF_THE_DISK, disk_error

_SLOW = (
    "it did not answer in time; try again, where the network is slow with a larger HF_HUB_DOWNLOAD_TIMEOUT "
    "(seconds)"
)
_AWAY = (
    "it cannot be reached; see to the network (and to HF_ENDPOINT, if that is set), or fetch the model "
    "elsewhere (`hf download {name}`) and copy it into the hub's cache here"
)
_CAUSES = {
    "GatedRepoError": (
        "it is gated: accept its terms at {page}, and log in as the user who did, with `hf auth login`"
    ),
    "DisabledRepoError": "the hub has disabled it; choose another model",
    "RevisionNotFoundError": "it has no such revision; mend model.revision ({page} lists branches and tags)",
    "RemoteEntryNotFoundError": (
        "it has no such file, so it is no model in transformers' format; if it holds GGUF files, fetch one "
        "and give its path"
    ),
    "RepositoryNotFoundError": (
        "there is no such model, or it is private: mend its name, or log in as a user who may read it, with "
        "`hf auth login`"
    ),
    "HFValidationError": "that is no name of a model on the hub; expected OWNER/NAME",
    "OfflineModeIsEnabled": (
        "HF_HUB_OFFLINE is set, so it is not asked: unset that, or fetch the model where there is a network "
        "(`hf download {name}`) and copy it into the hub's cache here"
    ),
    "ProxyError": "the proxy refuses; mend the environment variable HTTPS_PROXY, or unset it",
    "TimeoutException": _SLOW,
    "TimeoutError": _SLOW,
    "NetworkError": _AWAY,
    "ConnectionError": _AWAY,
}
"""Words for names of errors' classes, special ones first; libraries below the hub's client have theirs."""
_STATUSES = {
    401: "it does not take the token: log in again with `hf auth login`, or mend HF_TOKEN",
    403: "the token may not read this model: let it read gated repositories, or log in with another",
    429: "it has had too many requests; wait some minutes, or log in with `hf auth login`",
}


def refusal(error: Exception, model: ModelSection) -> str:
    """Why the hub did not serve something of `model.source`, and what to do: to follow a colon."""
    causes = list(_chain(error))
    for cause in causes:
        if (code := disk_error(cause)) in OF_THE_DISK:
            return _of_the_cache(os.strerror(code or 0))
    page = f"https://huggingface.co/{model.source}"
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    statuses = [getattr(getattr(cause, "response", None), "status_code", 0) for cause in causes]
    for name, words in _CAUSES.items():
        if name in kinds:
            text = words.replace(_SLOW, _SLOW).replace(_AWAY, _AWAY)
            return text.format(page=page, name=model.source)
    return _by_status(statuses) or f"{_told(error)}; try again, or give a local folder"


def _chain(error: BaseException) -> Iterator[Exception]:
    """An error and what it came from; the hub's client tells of a lost network as of a missing file."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        yield cause
        cause = cause.__cause__


def _of_the_cache(reason: str) -> str:
    from huggingface_hub import constants

    return (
        f"the hub's cache {constants.HF_HUB_CACHE} cannot be written to ({reason}); make room or mend its "
        "permissions, or let the environment variable HF_HOME name a folder on another disk"
    )


def _by_status(statuses: Sequence[int]) -> str | None:
    for status in statuses:
        if status in _STATUSES:
            return _STATUSES[status]
        if status >= 500:
            return f"it fails (HTTP {status}); try again later"
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
