"""Engines of vLLM for tests: small, offline, in float32, one thread."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vtprune.adapters.vllm

_SOURCES = sorted(Path(vtprune.adapters.vllm.__file__).parent.glob("*.py"))
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:12]

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    # vLLM remembers what a model class supports, and forgets it only if that class's own file changes.
    "VLLM_CACHE_ROOT": str(Path(tempfile.gettempdir()) / f"vtprune-vllm-{_VERSION}"),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read by vLLM when it is imported or starts."""

os.environ.update(SETTINGS)
# Set for our own kernels where there is no GPU; vLLM would run its kernels in the interpreter too.
os.environ.pop("TRITON_INTERPRET", None)

LLAVA = "VtpruneLlavaForConditionalGeneration"


@contextmanager
def engine(folder: Path, architecture: str, options: dict[str, Any] | None, **settings: Any) -> Iterator[Any]:
    """An engine in this process.

    Args:
        folder: Of the model.
        architecture: One of vtprune's, or vLLM's own.
        options: Pruner and budget for all requests.
        settings: Other arguments of `vllm.LLM`.
    """
    from vllm import LLM

    overrides = {"architectures": [architecture]} | ({} if options is None else {"vtprune": options})
    defaults = {"dtype": "float32", "max_model_len": 1280, "max_num_seqs": 16, "limit_mm_per_prompt": {"image": 3}}
    llm = LLM(str(folder), enforce_eager=True, hf_overrides=overrides, seed=0, **{**defaults, **settings})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def answers(
    llm: Any, prompts: Sequence[str], images: Sequence[Any], options: Any = None, tokens: int = 12
) -> list[Any]:
    """Greedy answers: for each prompt the tokens and how long the prompt was, image tokens included.

    Args:
        llm: The engine.
        prompts: With a mark for each image.
        images: One or a list for each prompt.
        options: Pruner and budget of these requests.
        tokens: Of an answer, at most.
    """
    from vllm import SamplingParams

    requests: list[dict[str, Any]] = [
        {"prompt": prompt, "multi_modal_data": {"image": image}} for prompt, image in zip(prompts, images, strict=True)
    ]
    if options is not None:
        requests = [{**request, "mm_processor_kwargs": {"vtprune": options}} for request in requests]
    found = llm.generate(requests, SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
    return [(list(one.outputs[0].token_ids), len(one.prompt_token_ids)) for one in found]
