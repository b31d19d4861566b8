"""Hubs that are offline, gated, slow or full: each is named with its remedy. Nothing here asks a network."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import _cache_manager

from stages.config.params import ModelSection
from stages.evaluate.network import checkpoint
from stages.files import InputError
from stages.sample.hub import refusal
from stages.sample.source import locate
from stages.sample.weight_files import INDEX, SINGLE
from tests import tiny

NAME, COMMIT = "someone/small", "a" * 40
MODEL = ModelSection(source=NAME, revision="v2", trust_remote_code=False)
REQUEST = httpx2.Request("GET", f"https://huggingface.co/{NAME}")


def http(kind: Any, status: int) -> Exception:
    error: Exception = kind("said by the hub", response=httpx2.Response(status, request=REQUEST))
    return error


def after(cause: Exception, kind: Any = errors.LocalEntryNotFoundError) -> Exception:
    """As the hub's client tells of a lost network: as of a file that is missing here."""
    error: Exception = kind("cannot find the file")
    error.__cause__ = cause
    return error


REFUSALS = {
    "gated": (http(errors.GatedRepoError, 403), r"gated: accept its terms at https.*small, .*hf auth login`"),
    "gated, in part": (after(http(errors.GatedRepoError, 401)), "it is gated: accept its terms"),
    "disabled": (http(errors.DisabledRepoError, 403), "has disabled it; choose another"),
    "no revision": (http(errors.RevisionNotFoundError, 404), r"no such revision; mend model\.revision"),
    "no file": (http(errors.RemoteEntryNotFoundError, 404), "GGUF files, fetch one"),
    "no model": (http(errors.RepositoryNotFoundError, 401), "no such model, or it is private: mend its name"),
    "no name": (errors.HFValidationError("a//b"), "no name of a model on the hub; expected OWNER/NAME"),
    "offline": (errors.OfflineModeIsEnabled("no"), r"HF_HUB_OFFLINE is set.*hf download someone/small"),
    "offline, a dry run": (after(errors.OfflineModeIsEnabled("no"), errors.DryRunError), "HF_HUB_OFFLINE is"),
    "a token": (http(errors.HfHubHTTPError, 401), r"not take the token.*HF_TOKEN"),
    "permissions": (http(errors.HfHubHTTPError, 403), "the token may not read this model"),
    "too many": (after(http(errors.HfHubHTTPError, 429)), "too many requests; wait"),
    "down": (after(http(errors.HfHubHTTPError, 503)), r"it fails \(HTTP 503\); try again later"),
    "slow": (after(httpx2.ReadTimeout("x")), "did not answer in time; .*HF_HUB_DOWNLOAD_TIMEOUT"),
    "slow to connect": (httpx2.ConnectTimeout("x"), "did not answer in time"),
    "no network": (after(httpx2.ConnectError("x")), "cannot be reached; see to the network"),
    "a lost network": (ConnectionResetError(errno.ECONNRESET, "x"), "cannot be reached"),
    "a proxy": (httpx2.ProxyError("x"), "HTTPS_PROXY"),
    "a full disk": (OSError(errno.ENOSPC, "x"), r"cannot be written to \(No space.*; make room.*HF_HOME"),
    "a full disk by Rust": (RuntimeError("IO (os error 28)"), "No space left on device"),
    "a read-only disk": (OSError(errno.EROFS, "x"), "Read-only file system"),
    "a quota": (after(OSError(errno.EDQUOT, "x"), OSError), "Disk quota exceeded"),
    "anything else": (RuntimeError("the\nlibrary's own"), "RuntimeError: the library's own; try again, or "),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_refusal_has_its_words(name: str) -> None:
    error, words = REFUSALS[name]
    told = refusal(error, MODEL)
    assert re.search(words, told)
    assert "\n" not in told
    assert "{" not in told


Lay = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Lays a model into a hub's cache, where the hub must not be asked; returns its snapshot.

    Files that are `without` are not in it, and of those that are `broken` the link alone.
    """
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for module in (constants, _cache_manager):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))

    def laid(without: str = "", broken: str = "", shards: bool = False) -> Path:
        whole = tiny.write_model(tmp_path / "whole", "llama")
        if shards:
            split(whole)
        repository = cache / f"models--{NAME.replace('/', '--')}"
        snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
        for folder in (snapshot, blobs, repository / "refs"):
            folder.mkdir(parents=True)
        (repository / "refs" / "v2").write_text(COMMIT)
        for number, path in enumerate(sorted(whole.iterdir())):
            if not (without and path.match(without)):
                shutil.copy(path, blobs / str(number))
                (snapshot / path.name).symlink_to(blobs / str(number))
                if broken and path.match(broken):
                    (blobs / str(number)).unlink()
        return snapshot

    return laid


def split(folder: Path) -> None:
    """Write the weights as two shards with an index."""
    from safetensors.numpy import load_file, save_file

    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(state)
    files = {name: f"model-0000{1 + (i >= 3)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("shards", [False, True])
def test_what_is_cached_whole_needs_no_hub(lay: Lay, shards: bool) -> None:
    snapshot = lay(shards=shards)
    assert checkpoint.load(MODEL).folder == snapshot


@pytest.mark.parametrize(
    "damage",
    [
        {"without": "*.safetensors"},
        {"broken": "*.safetensors"},
        {"shards": True, "without": "*.safetensors"},
        {"shards": True, "without": "*00002.safetensors"},
        {"shards": True, "broken": "*00001-*.safetensors"},
        {"shards": True, "broken": "*.index.json"},
    ],
    ids=str,
)
def test_a_configuration_without_its_weights_names_what_keeps_them_away(
    lay: Lay, damage: dict[str, Any]
) -> None:
    snapshot = lay(**damage)
    with pytest.raises(InputError) as caught:
        checkpoint.load(MODEL)
    told = str(caught.value)
    assert f"its weights are not or in part ({snapshot})" in told
    assert "HF_HUB_OFFLINE is set" in told
    assert "revision v2" in told


def test_a_cut_file_is_named_by_what_is_to_be_deleted(lay: Lay) -> None:
    """The file itself, not the link: the hub's client would link what is left of it again."""
    blob = (lay() / SINGLE).resolve()
    os.truncate(blob, blob.stat().st_size - 10)
    with pytest.raises(InputError, match=f"cut short .* Delete {blob} and fetch"):
        checkpoint.load(MODEL)


@pytest.mark.parametrize("name", ["gated", "no revision", "a full disk", "slow", "no network"])
def test_weights_that_are_not_served(lay: Lay, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, words = REFUSALS[name]

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    lay(without="*.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(InputError, match=f"its weights are not .*{words}"):
        checkpoint.load(MODEL)


def test_a_model_without_safetensors_is_told_from_one_that_is_not_fetched(
    lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = lay(without="*.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    with pytest.raises(InputError, match=r"has no \*\.safetensors in a+; other formats are not read"):
        checkpoint.load(MODEL)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_configuration_that_is_not_served(lay: Lay, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, words = REFUSALS[name]

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    lay()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=rf"config\.json \(revision v2\): .*{words}.*cache: {NAME}\."):
        locate(MODEL)


def test_a_configuration_whose_link_leads_nowhere(lay: Lay) -> None:
    lay(broken="config.json")
    with pytest.raises(InputError, match=r"did not serve its config\.json .*HF_HUB_OFFLINE is set"):
        locate(MODEL)
