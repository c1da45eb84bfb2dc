"""Reading a folder of results and writing its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtprune.eval.analysis import read_folders
from vtprune.eval.report.content import Content, make_content
from vtprune.eval.report.examples import MOST, find_examples
from vtprune.eval.report.markdown import to_markdown
from vtprune.eval.report.page import to_html
from vtprune.eval.report.spreadsheet import to_csv
from vtprune.eval.store import write_atomically


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        content: What it says.
        html: The page.
        markdown: The text.
        csv: The numbers.
    """

    content: Content
    html: Path
    markdown: Path
    csv: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """All three files."""
        return self.html, self.markdown, self.csv


def write_report(
    folders: Sequence[Path], output: Path | None = None, *, examples: int = MOST, include: Sequence[Path] = ()
) -> Written:
    """Writes `report.html`, `report.md` and `report.csv`.

    Args:
        folders: Of one sweep, or of several that belong together.
        output: Folder of the report, made if there is none; the first of `folders` by default.
        examples: Most questions that are shown with their pictures; with 0 no task is loaded.
        include: Folders with further task files.

    Raises:
        ValueError: No results in a folder, or a number out of range.
        OSError: The report cannot be written.
    """
    if examples < 0:
        raise ValueError(f"examples must be at least 0, got {examples}")
    for folder in include:
        if not folder.is_dir():
            raise ValueError(f"task folder {folder} does not exist")
    analysis = read_folders(folders)
    output = output or folders[0]
    output.mkdir(parents=True, exist_ok=True)
    content = make_content(analysis)
    shown, reasons = find_examples(analysis.sections, include, examples) if examples else ([], [])
    written = Written(content, output / "report.html", output / "report.md", output / "report.csv")
    write_atomically(written.html, to_html(content, shown, reasons).encode())
    write_atomically(written.markdown, to_markdown(content).encode())
    write_atomically(written.csv, to_csv(content).encode())
    return written
