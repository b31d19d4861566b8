"""What is exported appears whole, or what was there before stays."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.export.results import staging
from stages.export.results.staging import replacing, require_space
from stages.files import InputError
from tests import tiny
from tests.small import REPOSITORY


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def nothing() -> None: ...


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def write(parent: Path, text: str, *more: str, then: Callable[[], Any] = nothing) -> None:
    """An export of a folder and a file, all of one text, and what happens before it is whole."""
    with replacing(parent) as new:
        (new / "model").mkdir()
        for name in ("model/weights", "report.html", *more):
            (new / name).write_text(text)
        then()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folders_and_files_are_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    parent = tmp_path / "not" / "there yet"
    write(parent, "first", "model/stale")
    (parent / "journal.jsonl").write_text("of another")
    (parent / ".partial").mkdir()  # what a kill left
    (parent / ".partial" / "half").write_text("")
    write(parent, "second")
    assert contents(parent) == {
        "model/weights": b"second",
        "report.html": b"second",
        "journal.jsonl": b"of another",
    }
    assert sorted(path.name for path in parent.iterdir()) == ["journal.jsonl", "model", "report.html"]


@pytest.mark.parametrize("step", ["_sync", "_take_place", None])
def test_an_interrupt_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str | None
) -> None:
    write(tmp_path, "first")
    before = contents(tmp_path)
    if step is not None:
        monkeypatch.setattr(staging, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "second", then=nothing if step else interrupt)
    assert contents(tmp_path) == before
    assert not (tmp_path / ".partial").exists()


def test_a_failed_exchange_by_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "first")
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.parent.name == ".partial":
            raise PermissionError("not today")
        return rename(self, target)

    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(PermissionError):
        write(tmp_path, "second")
    assert (tmp_path / "model" / "weights").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "report.html"]


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, "first")
    before = contents(tmp_path)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from stages.export.results.staging import replacing\n"
        "with replacing(Path(sys.argv[1])) as new:\n"
        "    (new / 'model').mkdir()\n"
        "    (new / 'model' / 'weights').write_text('half')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    left = contents(tmp_path)
    assert left == {**before, ".partial/model/weights": b"half"}
    write(tmp_path, "second")
    assert contents(tmp_path) == {"model/weights": b"second", "report.html": b"second"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_leaves_what_was_there_and_is_said(tmp_path: Path) -> None:
    write(tmp_path, "first")
    before = contents(tmp_path)
    full, nowhere = Path("/dev/full"), tmp_path / "nowhere" / "file"
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        write(tmp_path, "second", then=lambda: full.write_text("what no disk has room for"))
    with pytest.raises(FileNotFoundError):  # any other error keeps its name
        write(tmp_path, "second", then=nowhere.read_text)
    assert contents(tmp_path) == before


FILE_LIMIT = """
import resource, sys
from pathlib import Path
from tests import tiny
from stages.files import InputError
model = tiny.random_model("llama")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    tiny.export(Path(sys.argv[1]), model, tiny.MIXED)
except InputError as error:
    print(error)
"""


def test_weights_that_the_disk_has_no_room_for(tmp_path: Path) -> None:
    """Files that may not grow stand for a full disk: the weights break off in the middle."""
    folder = tiny.export(tmp_path / "model", tiny.random_model("llama"), tiny.HOLLOW)
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(folder)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert "free some space" in done.stdout
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder = tiny.export(tmp_path / "model", tiny.random_model("llama"), tiny.MIXED)
        assert os.umask(umask) == umask, "the process's umask was changed"
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {mode}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_room_is_asked_for_before_the_work(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1000)
    with pytest.raises(InputError, match=r"MB of free space; the export needs about 1,000,000,000,000 MB"):
        require_space(tmp_path / "not" / "there", 10**18)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder with an export in which this process may not write; where it is root's, as nobody."""
    root = Path(tempfile.mkdtemp())
    write(root / "export", "first")
    root.chmod(0o755)
    (root / "export").chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield root / "export"
    finally:
        os.seteuid(user)
        (root / "export").chmod(0o755)
        shutil.rmtree(root)


def test_a_folder_that_may_not_be_written_is_one_clear_error(read_only: Path) -> None:
    before = contents(read_only)
    with pytest.raises(
        InputError, match=r"export cannot be written to \(Permission denied\).*make it writable"
    ):
        require_space(read_only, 1000)
    with pytest.raises(InputError, match="cannot be written to"):
        write(read_only, "second")
    with pytest.raises(InputError, match="cannot be written to"):
        write(read_only / "not" / "there", "second")
    assert contents(read_only) == before
