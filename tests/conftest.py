"""What all tests share: no network, fixed seeds, and GPU tests only where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

# Set first: the Hub client reads its settings when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel is defined: without a GPU Triton's interpreter runs it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings

# The models are tiny: a second thread only waits, and on a busy machine it spins.
torch.set_num_threads(1)

settings.register_profile("vtprune", deadline=None, derandomize=True)
settings.load_profile("vtprune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from one seed and leaves the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Helpers that put a tiny model and its questions into folders."""
    return import_module("tiny_folder")


@pytest.fixture(scope="session")
def tiny_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_tiny_model(tmp_path_factory.mktemp("tiny-llava"))
    return folder


@pytest.fixture(scope="session")
def tiny_tasks(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_questions(tmp_path_factory.mktemp("tasks") / "tiny", 10)
    return folder
