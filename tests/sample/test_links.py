"""Links that stay within a model's folder, or within its repository in the hub's cache, are followed."""

from __future__ import annotations

from pathlib import Path

from stages.sample.links import leaves


def test_a_link_leaves_where_its_file_lies_outside(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "secret").write_text("key")
    (model / "LICENSE").write_text("terms")
    (model / "within").symlink_to("LICENSE")
    (model / "out").symlink_to(tmp_path / "secret")
    (model / "twice").symlink_to("out")
    (tmp_path / "alias").symlink_to(model)
    (tmp_path / "model-of-another").mkdir()
    (model / "beside").symlink_to(tmp_path / "model-of-another")
    for folder in (model, tmp_path / "alias"):
        found = {
            name: leaves(folder / name, folder) for name in ("LICENSE", "within", "out", "twice", "beside")
        }
        assert found == {"LICENSE": False, "within": False, "out": True, "twice": True, "beside": True}


def test_a_snapshot_links_to_the_blobs_of_its_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--small"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("terms")
    (tmp_path / "models--org--other").mkdir()
    (tmp_path / "models--org--other" / "abc").write_text("terms")
    (snapshot / "LICENSE").symlink_to("../../blobs/abc")
    (snapshot / "NOTICE").symlink_to("../../../models--org--other/abc")
    assert not leaves(snapshot / "LICENSE", snapshot)
    assert leaves(snapshot / "NOTICE", snapshot)
