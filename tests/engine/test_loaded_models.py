"""Models as users load them: quantised, with PEFT adapters, spread over devices, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedModel

import vtprune
from vtprune.adapters.conformance import footprint, oracle_error


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = tiny.prompt([1, 1], padding="left")
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.tiny_llava().save_pretrained(tmp_path)
    return tmp_path


def check(model: PreTrainedModel, tolerance: float, dtype: torch.dtype = torch.float32) -> None:
    """Pruned equals masked, `generate` goes on, and unwrapping leaves nothing."""
    call: Any = model
    made = inputs(dtype)
    with torch.no_grad():
        call(**made)
        before = footprint(model)
        for positions in ("keep", "pack"):
            assert oracle_error(model, made, (0, 2), positions, use_cache=True) <= tolerance
    with vtprune.pruning(call, "fastv", 9):
        assert call.generate(**made, max_new_tokens=3, min_new_tokens=3).shape[1] == made["input_ids"].shape[1] + 3
        assert [len(row[0]) for row in vtprune.report(call).stages[0].images] == [9, 9]
    assert footprint(model) == before


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    model: Any = tiny.tiny_llava()
    check(model.to(dtype), tolerance, dtype)


def test_layers_on_another_device(folder: Path, tmp_path: Path) -> None:
    """Half of the layers are fetched from disk for each pass, by hooks around the modules."""
    places: dict[str, Any] = dict.fromkeys(
        ["model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens", "lm_head"], "cpu"
    )
    places |= dict.fromkeys(["model.language_model.norm", "model.language_model.rotary_emb"], "cpu")
    places |= {f"model.language_model.layers.{layer}": "cpu" if layer < 3 else "disk" for layer in range(tiny.LAYERS)}
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, device_map=places, offload_folder=str(tmp_path / "offload")
    )
    check(model.eval(), 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_on_two_devices(folder: Path) -> None:
    places: dict[str, Any] = {"model.vision_tower": 0, "model.multi_modal_projector": 0, "lm_head": 1}
    places |= {"model.language_model.embed_tokens": 0, "model.language_model.rotary_emb": 0}
    places |= {"model.language_model.norm": 1}
    places |= {f"model.language_model.layers.{layer}": int(layer > 2) for layer in range(tiny.LAYERS)}
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, device_map=places)
    model.eval()
    made = {name: value.to(0) for name, value in inputs().items()}
    with torch.no_grad():
        for stages in ((0, 4), (3,), (1, 3, 5)):
            for positions in ("keep", "pack"):
                assert oracle_error(model, made, stages, positions, use_cache=True) <= 1e-3
    for method in (vtprune.FastV(layer=3), vtprune.FastV(layer=4), vtprune.make_pruner("pyramiddrop")):
        with vtprune.pruning(model, method, 9):
            assert model.generate(**made, max_new_tokens=3, min_new_tokens=3).shape[1] == made["input_ids"].shape[1] + 3


def test_peft() -> None:
    peft = pytest.importorskip("peft")
    stock: Any = tiny.tiny_llava()
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model: Any = peft.get_peft_model(stock, settings).eval()
    made = inputs()
    with torch.no_grad():
        plain = model(**made).logits
        assert vtprune.wrap(model, "divprune", 9) is model
        with pytest.raises(ValueError, match="wrapped already"):
            vtprune.wrap(stock, "divprune", 9)
        model(**made)
        report = vtprune.report(model)
        assert [len(row[0]) for row in report.stages[0].images] == [9, 9]
        assert model.generate(**made, max_new_tokens=3, min_new_tokens=3).shape[1] == made["input_ids"].shape[1] + 3
        assert vtprune.unwrap(model) is model
        assert torch.equal(model(**made).logits, plain)


def test_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model: Any = tiny.tiny_llava()
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    check(model, 1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(folder: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # Blocks of 64 values are quantised together; the tiny tower is narrower than that.
    narrow = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    settings: dict[str, Any] = {f"load_in_{bits}bit": True, "llm_int8_skip_modules": narrow}
    model = LlavaForConditionalGeneration.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**settings))
    quantised = {type(module).__name__ for module in model.modules()}
    assert quantised & {"Linear4bit", "Linear8bitLt"}
    check(model.eval(), 0.05, model.dtype)
