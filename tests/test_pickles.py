"""No pickle is ever run, whatever file of whatever is read it takes the place of."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from pyarrow import parquet

from stages.config.params import Corpora, Division, ModelSection, load_params
from stages.evaluate.network import checkpoint
from stages.evaluate.text import corpora
from stages.files import InputError, kept
from stages.sample import latency
from stages.sample.source import locate, read_config, read_licence
from stages.search.study_log import StudyLog
from stages.tracking.outbox import Begin, Outbox
from stages.train_predictor.models import Roles, TargetModel
from stages.train_predictor.pyfunc import _load_pyfunc
from tests import ggufs, tiny
from tests.bombs import BOMBS
from tests.sample.test_source import make_package
from tests.small import COMMITTED, SMALL
from tests.test_persisted import KEPT

pytestmark = pytest.mark.parametrize("written", BOMBS)


@pytest.fixture
def fired(tmp_path: Path) -> Iterator[Path]:
    """What a bomb writes where it is run; at the end of the test it is not there."""
    path = tmp_path / "fired"
    yield path
    assert not path.exists()


@pytest.fixture
def bomb(written: str, fired: Path) -> bytes:
    return BOMBS[written](fired)


def test_the_bombs_work(bomb: bytes, written: str, fired: Path) -> None:
    unsafe: dict[str, Callable[[bytes], Any]] = {
        "pickle": pickle.loads,
        "pickle in ASCII": pickle.loads,
        "torch": lambda raw: torch.load(io.BytesIO(raw), weights_only=False),
        "numpy": lambda raw: np.load(io.BytesIO(raw), allow_pickle=True),
        "YAML": lambda raw: yaml.load(raw, yaml.UnsafeLoader),
    }
    unsafe[written](bomb)
    assert fired.exists()
    shutil.rmtree(fired) if fired.is_dir() else fired.unlink()


@pytest.mark.parametrize("name", KEPT)
def test_in_what_is_kept(name: str, bomb: bytes, tmp_path: Path) -> None:
    """It is refused, or computed again: of journals no row is left."""
    folder = tmp_path / "kept"
    folder.mkdir()
    KEPT[name].write(folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(bomb)
        with contextlib.suppress(InputError):
            assert not KEPT[name].read(folder)
        path.write_bytes(whole)


def test_in_a_model(bomb: bytes, tmp_path: Path) -> None:
    """Every file of a folder, and every name beside them that a library might look for."""
    folder = tiny.write_model(tmp_path / "model", "llama")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(bomb)
        with pytest.raises(InputError):
            tiny.load(folder)
        path.write_bytes(whole)
    beside = ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "a.npy")
    for name in (*beside, "README.md", "tf_model.h5", "flax_model.msgpack", "model.ckpt"):
        (folder / name).write_bytes(bomb)
    tiny.load(folder)
    assert read_licence(locate(tiny.source_of(folder))) == "unknown"
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).unlink()
        for other in ("tokenizer.model", "vocab.json", "merges.txt"):
            (folder / other).write_bytes(bomb)
        with pytest.raises(InputError):
            tiny.load(folder)


def test_in_a_gguf_file_and_what_is_made_of_it(
    bomb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of())
    loaded = checkpoint.load(section(path))
    for file in sorted(loaded.folder.iterdir()):
        file.write_bytes(bomb)
    assert checkpoint.load(section(path)).digest == loaded.digest
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"tiny\.gguf"):
        checkpoint.load(section(path))


def section(source: str | Path) -> ModelSection:
    return ModelSection(source=str(source), revision=None, trust_remote_code=False)


def test_in_a_package(bomb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path / "site", "prunecast-bombs", ["bombs/m.gguf"])
    (tmp_path / "site" / "bombs" / "m.gguf").write_bytes(bomb)
    (tmp_path / "site" / "bombs" / "__init__.py").write_text("raise SystemExit('a package was imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(InputError, match=r"m\.gguf"):
        read_config(locate(section("package:prunecast-bombs")))


def corpus_of(source: str, root: Path, questions: bool) -> object:
    texts: dict[str, Any] = {"unread": "x"} if questions else {"mine": source}
    asked: dict[str, Any] = {"mine": source} if questions else {}
    division = Division(calibration=0.3, selection=0.35, report=0.35)
    read = corpora.load_questions if questions else corpora.load_texts
    return read(Corpora(division=division, texts=texts, questions=asked), root)


@pytest.mark.parametrize("questions", [False, True])
@pytest.mark.parametrize("prefix", ["", "hub:"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet", ".pkl", ".npy", ".pt", ".tar"])
def test_in_a_corpus(
    suffix: str, prefix: str, questions: bool, bomb: bytes, written: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / f"train{suffix}").write_bytes(bomb)
    source = f"hub:./own:own/train{suffix}:train" if prefix else f"own/train{suffix}"
    if written in ("YAML", "pickle in ASCII") and suffix in (".txt", ".csv") and not questions:
        return  # text of some lines: no more than that
    with pytest.raises(InputError, match="own"):
        corpus_of(source, tmp_path, questions)


@pytest.mark.parametrize("prefix", ["", "hub:"])
def test_in_a_table(prefix: str, bomb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's extension types once came as pickles, pandas keeps an index in metadata, cells hold bytes."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    typed = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb}
    rows = 40
    fields = [
        pa.field("text", pa.string()),
        pa.field("odd", pa.int64(), metadata=typed),
        pa.field("object", pa.binary()),
    ]
    columns = [[f"Paragraph {i}." for i in range(rows)], list(range(rows)), [bomb] * rows]
    schema = pa.schema(fields, metadata={"pandas": bomb, "prunecast": bomb})
    (tmp_path / "own").mkdir()
    arrays = [pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)]
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / "own" / "train.parquet")
    with contextlib.suppress(InputError):
        corpus_of(f"{prefix}own{'::train' if prefix else '/train.parquet'}", tmp_path, questions=False)


def test_in_trees_whatever_their_seal(bomb: bytes, tmp_path: Path) -> None:
    (tmp_path / "trees.ubj").write_bytes(bomb)
    content = {"additive": None, "curves": None, "trees": "trees.ubj"}
    with pytest.raises(InputError, match=r"trees\.ubj cannot be read"):
        TargetModel.load(tmp_path, content, Roles.of(["a"]))


def test_in_what_mlflow_loads(bomb: bytes, tmp_path: Path) -> None:
    KEPT["predictor of trees"].write(tmp_path)
    for path in [path for path in tmp_path.iterdir() if path.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(bomb)
        with pytest.raises(InputError):
            _load_pyfunc(str(tmp_path))
        path.write_bytes(whole)


def test_in_a_table_of_latencies(bomb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured again."""
    measured: list[Any] = []

    def measure(*arguments: Any) -> Any:
        measured.append(arguments)
        raise InputError("measured")

    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "kept", lambda path, read: kept_as(bomb, path, read))
    monkeypatch.setattr(latency, "measure", measure)
    with pytest.raises(InputError, match="measured"):
        latency.table_of(SMALL, COMMITTED.budget, 8)
    assert len(measured) == 1


def kept_as(bomb: bytes, path: Path, read: Callable[[Path], Any]) -> Any:
    """What is kept, once a bomb lies there."""
    path.parent.mkdir(parents=True)
    path.write_bytes(bomb)
    return kept(path, read)


def test_in_the_studies(bomb: bytes, tmp_path: Path) -> None:
    """They begin anew."""
    (tmp_path / "studies.log").write_bytes(bomb)
    assert list(StudyLog(tmp_path / "studies.log").read_logs(0)) == []


def test_in_what_is_to_be_logged(bomb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    texts: dict[str, str] = {}
    begin = Begin("x", "x", "x", "x", texts, texts, texts, at=1)
    box = Outbox(begin)
    folder = box.root / "1-x-1"
    folder.mkdir(parents=True)
    for name in ("lock", "begin.json", "000001.json"):
        (folder / name).write_bytes(bomb)
    assert list(box.left()) == []


def test_in_params(bomb: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(path)
