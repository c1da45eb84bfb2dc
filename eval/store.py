"""Result files of a sweep: one line a cell, one file of samples a cell, never half written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

Record = dict[str, Any]

DONE, FAILED = "done", "failed"


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file in one step: readers and crashes see the old content or the new, never a part.

    Raises:
        OSError: The folder cannot be written or the disk is full; the old file is untouched.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner may read, whatever the user's umask says.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()


class ResultStore:
    """The folder of a sweep.

    `results.jsonl` holds the newest record of each cell, `samples/<key>.jsonl` what the model answered. A record is
    written after its samples, so that a record that is there is complete.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a folder, made if there is none.

        Raises:
            OSError: It cannot be made or written.
            ValueError: The results in it cannot be read.
        """
        self.folder = folder
        self.samples = folder / "samples"
        self.path = folder / "results.jsonl"
        self.samples.mkdir(parents=True, exist_ok=True)
        for place in (folder, self.samples):
            with tempfile.TemporaryFile(dir=place):
                pass
        self._records = self._read()

    def _read(self) -> dict[str, Record]:
        if not self.path.exists():
            return {}
        records: dict[str, Record] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"line {number} of {self.path} is no result of a sweep; remove the line or choose another folder"
                ) from error
        return records

    def reread(self) -> None:
        """Takes up what other processes wrote."""
        self._records = self._read()

    def finished(self, key: str) -> Record | None:
        """The record of a cell that ran to its end, else `None`."""
        record = self._records.get(key)
        return record if record is not None and record["status"] == DONE else None

    @property
    def records(self) -> list[Record]:
        """The newest record of each cell."""
        return list(self._records.values())

    def get(self, key: str) -> Record | None:
        """The newest record of a cell, failed or not."""
        return self._records.get(key)

    def add(self, record: Record, samples: Iterable[Mapping[str, Any]] = ()) -> None:
        """Writes the samples of a cell and its record; what was there before stays."""
        key = record["key"]
        if record["status"] == DONE:
            write_atomically(self.samples / f"{key}.jsonl", _lines(samples))
        # Another sweep may write to the same folder at the same time.
        with FileLock(self.folder / ".lock"):
            self._records = {**self._read(), key: record}
            write_atomically(self.path, _lines(self._records.values()))
