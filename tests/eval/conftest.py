from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices: threads would mostly wait for each other, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Helpers, loaded by path: with importlib mode test folders are no packages."""
    path = Path(__file__).resolve().parents[1] / "eval" / "tiny_folder.py"
    spec = importlib.util.spec_from_file_location("vtprune_tiny_folder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_tiny_model(tmp_path_factory.mktemp("tiny-llava"))
    return folder


@pytest.fixture(scope="session")
def tiny_tasks(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_questions(tmp_path_factory.mktemp("tasks") / "tiny", 10)
    return folder
