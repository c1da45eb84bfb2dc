"""Loading a model with its processor by the name of the embedded one, a folder or a hub id."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash

from vtprune.quiet import no_loading_bar

if TYPE_CHECKING:
    from vtprune.text_tower import TextTower

EMBEDDED = "embedded"
"""The small model that comes with the library."""

DTYPES = ("auto", "float32", "bfloat16", "float16")

_WEIGHT_SAMPLE = 1 << 20


class ModelError(ValueError):
    """A model that is not there or cannot be read; the message says which and what to do."""


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, ready to generate, the processor that feeds it, and the CLIP text tower to go with it.

    `text_tower` is what `vtprune.wrap` takes under that name.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    text_tower: str | TextTower | None = None

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """Number type of the weights."""
        return str(self.model.dtype).removeprefix("torch.")


def resolve_name(name: str) -> str:
    """The folder or hub id behind a name."""
    if name != EMBEDDED:
        return name
    from vtprune.eval.embedded import MODEL_DIR

    return str(MODEL_DIR)


def fingerprint(name: str) -> str:
    """Tells the weights behind a name from others, without loading them.

    Of a folder the small files and both ends of the large ones are hashed (safetensors keeps its table of contents
    at the front), the model card left out; of a hub id the commit is taken.

    Raises:
        ModelError: No such model.
    """
    place = resolve_name(name)
    if not Path(place).is_dir():
        config = _hub_config(name)
        return str(extract_commit_hash(str(config), None) or name)
    if not (Path(place) / "config.json").is_file():
        raise ModelError(f"{place} has no config.json, so it is no model folder")
    digest = hashlib.sha256()
    for path in sorted(Path(place).iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_WEIGHT_SAMPLE))
                if size > 2 * _WEIGHT_SAMPLE:
                    file.seek(-_WEIGHT_SAMPLE, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _hub_config(name: str) -> Path:
    try:
        return Path(str(cached_file(name, "config.json")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r} is neither {EMBEDDED!r}, a folder nor a model that the hub serves or has cached "
            f"({_first_line(error)})"
        ) from error


def load(
    name: str = EMBEDDED,
    *,
    device: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    text_tower: str | None = None,
) -> LoadedModel:
    """Loads a vision-language model and its processor, which pads on the left.

    Args:
        name: `"embedded"`, a folder or a hub id.
        device: Such as `"cpu"` or `"cuda:0"`; by default the accelerator, if there is one.
        dtype: One of `DTYPES`; `"auto"` takes that of the weights.
        attn_implementation: Of transformers; its default if `None`.
        trust_remote_code: Run code from the model's folder.
        text_tower: Kept for methods that compare patches with the question; loaded when one of them is used.

    Raises:
        ModelError: No such model, a damaged one, or one that takes no pictures.
        ValueError: Unknown dtype or device.
    """
    target = check_device(device)
    check_dtype(dtype)
    place = resolve_name(name)
    if not Path(place).is_dir():
        _hub_config(name)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(place, **common)
        if type(config) not in AutoModelForImageTextToText._model_mapping and "AutoModelForImageTextToText" not in (
            getattr(config, "auto_map", None) or {}
        ):
            raise ModelError(f"model {name!r} is a {config.model_type}, which takes no pictures")
        kwargs = {**common, "dtype": dtype}
        if attn_implementation is not None:
            kwargs["attn_implementation"] = attn_implementation
        with no_loading_bar():
            model = AutoModelForImageTextToText.from_pretrained(place, **kwargs)
        processor = AutoProcessor.from_pretrained(place, **common)
    except ModelError:
        raise
    except Exception as error:
        # Damaged files end in errors of many libraries (json, safetensors, tokenizers), none of which names the model.
        raise ModelError(f"cannot load model {name!r}: {type(error).__name__}: {_first_line(error)}") from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(f"model {name!r} has no processor with a tokenizer (got {type(processor).__name__})")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    on_device: Any = model
    on_device.to(target)
    return LoadedModel(name, model.eval(), processor, text_tower)


def check_dtype(dtype: str) -> str:
    """Returns a known dtype name unchanged, else raises `ValueError`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def check_device(device: str | None) -> torch.device:
    """The device of that name, or the default one.

    Raises:
        ValueError: No such device here.
    """
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found if found is not None else torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {_first_line(error)}") from error
    return target


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
