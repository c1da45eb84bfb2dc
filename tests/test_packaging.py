"""The distribution: what is in it, under which names, and that what is written about it is true."""

from __future__ import annotations

import doctest
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vtprune
from vtprune.docs import pruner_table, replace_block
from vtprune.registry import pruner_classes

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS: dict[str, Path] = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def folder_of(package: str) -> Path:
    """Where the checkout keeps a package."""
    outer = max((name for name in FOLDERS if f"{package}.".startswith(f"{name}.")), key=len)
    return FOLDERS[outer].joinpath(*package[len(outer) :].split("."))


def packages_on_disk() -> set[str]:
    found = set()
    for package, folder in FOLDERS.items():
        for marker in folder.rglob("__init__.py"):
            parts = marker.parent.relative_to(folder).parts
            if (folder / parts[0] if parts else folder).is_symlink():
                continue  # the links that a developer may have made, see CONTRIBUTING.md
            found.add(".".join((package, *parts)))
    return found


def data_files(folder: Path) -> Iterator[Path]:
    """Files below a package that are neither its modules nor another package's."""
    for path in folder.iterdir():
        if path.is_dir():
            if not (path.name == "__pycache__" or path.is_symlink() or (path / "__init__.py").exists()):
                yield from (inner for inner in path.rglob("*") if inner.is_file() and inner.suffix != ".pyc")
        elif path.suffix != ".py":
            yield path


def module_names() -> list[str]:
    return sorted(
        package if path.stem == "__init__" else f"{package}.{path.stem}"
        for package in SETUPTOOLS["packages"]
        for path in folder_of(package).glob("*.py")
        if path.stem != "__main__"
    )


def test_every_package_is_listed() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_on_disk()
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize(
    ("package", "pattern"),
    [(package, pattern) for package, patterns in SETUPTOOLS["package-data"].items() for pattern in patterns],
)
def test_package_data_is_there(package: str, pattern: str) -> None:
    found = [path for path in folder_of(package).glob(pattern) if path.is_file()]
    assert found, f"{pattern} matches nothing in {folder_of(package)}"


def test_all_data_is_shipped() -> None:
    """Every file of a package that is no module of it is matched by one of its package-data patterns."""
    for package in SETUPTOOLS["packages"]:
        folder = folder_of(package)
        patterns = SETUPTOOLS["package-data"].get(package, [])
        shipped = {path for pattern in patterns for path in folder.glob(pattern)}
        for path in data_files(folder):
            assert path in shipped, f"{path} would not be in the wheel"


@pytest.mark.parametrize("name", ["adapters", "demo", "eval"])
def test_folders_are_no_packages_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=f"'vtprune.{name}': import it by that name"):
        importlib.import_module(name)


def test_version() -> None:
    assert vtprune.__version__ == PROJECT["project"]["version"]


def test_entry_points_lead_somewhere() -> None:
    project = PROJECT["project"]
    targets = [*project["scripts"].values()]
    targets += [target for group in project["entry-points"].values() for target in group.values()]
    for target in targets:
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), target


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_readme_lists_the_pruners() -> None:
    shown = "README.md does not show the registered pruners; run `python -m vtprune.docs`"
    assert replace_block(README, "pruners", pruner_table()) == README, shown
    block = README.partition("<!-- begin: pruners -->")[2].partition("<!-- end: pruners -->")[0]
    assert re.findall(r"^\| `([^`]+)`", block, flags=re.MULTILINE) == list(pruner_classes())


@pytest.mark.parametrize("text", ["", "<!-- begin: x -->\n", "<!-- end: x -->\n<!-- begin: x -->\n"])
def test_block_without_its_marks(text: str) -> None:
    with pytest.raises(ValueError, match="once each, in this order"):
        replace_block(text, "x", "new")


def test_block() -> None:
    text = "a\n<!-- begin: x -->\nold\nold\n<!-- end: x -->\nb\n"
    assert replace_block(text, "x", "new") == "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n"


def test_readme_links_exist() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", README)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", module_names())
def test_doctests(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "vllm":
            raise
        pytest.skip("vLLM has an environment of its own, which .ci/vllm makes")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert not failed, f"{failed} examples of {name} fail; their output is above"


def test_type_checkers_know_every_method() -> None:
    """`vtprune.FastV` is served at run time from the registry; editors read the list in `__init__.py`."""
    import vtprune
    from vtprune.registry import pruner_classes

    text = Path(str(vtprune.__file__)).read_text(encoding="utf-8")
    for cls in pruner_classes().values():
        assert f"from {cls.__module__} import {cls.__name__} as {cls.__name__}\n" in text
        assert getattr(vtprune, cls.__name__) is cls
