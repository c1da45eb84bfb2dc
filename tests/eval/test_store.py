from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from vtprune.eval.store import DONE, FAILED, ResultStore, write_atomically


def record(key: str, status: str = DONE, **more: object) -> dict[str, object]:
    return {"key": key, "status": status, **more}


def test_records_survive_reopening(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "a" / "b")
    store.add(record("x", value=1), [{"answer": "ja", "n": 1}])
    store.add(record("y", FAILED))
    again = ResultStore(tmp_path / "a" / "b")
    assert again.finished("x") == record("x", value=1)
    assert again.finished("y") is None
    assert again.get("y") == record("y", FAILED)
    assert json.loads((again.samples / "x.jsonl").read_text()) == {"answer": "ja", "n": 1}
    assert not (again.samples / "y.jsonl").exists()


def test_a_second_try_replaces_the_failed_one(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.add(record("x", FAILED))
    store.add(record("x", value=2))
    assert len(store.path.read_text().splitlines()) == 1
    assert ResultStore(tmp_path).finished("x") == record("x", value=2)


def test_two_sweeps_share_a_folder(tmp_path: Path) -> None:
    one, two = ResultStore(tmp_path), ResultStore(tmp_path)
    one.add(record("x"))
    two.add(record("y"))
    reopened = ResultStore(tmp_path)
    assert reopened.finished("x")
    assert reopened.finished("y")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = ResultStore(tmp_path)
    store.add(record("x"))
    before = store.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            store.add(record("y"))
    assert store.path.read_bytes() == before
    left = {path.name for path in tmp_path.rglob("*")} - {".lock"}
    assert left == {"results.jsonl", "samples", "x.jsonl"}
    assert ResultStore(tmp_path).finished("y") is None


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("line", ["no json", "[]", '{"status": "done"}'])
def test_foreign_file_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text('{"key": "x", "status": "done"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*remove the line"):
        ResultStore(tmp_path)


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ResultStore(tmp_path / "file")
