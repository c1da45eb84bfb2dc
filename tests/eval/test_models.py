from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from vtprune.eval.models import ModelError, check_device, fingerprint, load


def test_load(tiny_folder: Path) -> None:
    loaded = load(str(tiny_folder), device="cpu", dtype="bfloat16")
    assert (loaded.dtype, loaded.device) == ("bfloat16", torch.device("cpu"))
    assert loaded.processor.tokenizer.padding_side == "left"
    assert not loaded.model.training


def test_fingerprint_follows_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    first = fingerprint(str(copy))
    assert first == fingerprint(str(tiny_folder))
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(str(copy)) != first


def test_no_such_model() -> None:
    with pytest.raises(ModelError, match="'nobody/nothing' is neither 'embedded', a folder nor"):
        load("nobody/nothing", device="cpu")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        fingerprint(str(tmp_path))


def test_text_model(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a llama, which takes no pictures"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_damaged_model(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    (copy / name).write_bytes(b"{ damaged")
    with pytest.raises(ModelError, match="cannot load model") as caught:
        load(str(copy), device="cpu")
    assert "\n" not in str(caught.value)


def test_unknown_dtype_and_device() -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        load("embedded", device="cpu", dtype="half")
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        check_device("cuda:99")
