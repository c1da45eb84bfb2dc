"""Servers of vLLM for tests: started by `vtprune serve`, asked over HTTP."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from serving.engines import SETTINGS

NAME = "embedded"


@contextmanager
def server(log: Path, options: Sequence[str], more: Sequence[str] = (), threads: str = "1") -> Iterator[str]:
    """The address of a server of the embedded model, which ends with the block.

    Args:
        log: File for what it prints.
        options: Of `vtprune serve`.
        more: Other options of `vllm serve`.
        threads: Of vLLM.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = (
        "--dtype float32 --max-model-len 1280 --max-num-seqs 16 --enforce-eager --disable-uvicorn-access-log".split()
    )
    command = [sys.executable, "-c", "from vtprune.cli import main; main()", "serve", NAME, *options, *small]
    command += ["--host", "127.0.0.1", "--port", str(port), "--limit-mm-per-prompt", '{"image": 3}', *more]
    environment = {**os.environ, **SETTINGS, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process, log)
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-4000:]}")


def as_url(image: Image.Image) -> str:
    """A picture as the text that goes into a request."""
    found = io.BytesIO()
    image.save(found, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(found.getvalue()).decode()}"


def body(question: str, urls: Sequence[str], options: Any = None, tokens: int = 12) -> dict[str, Any]:
    """A request for a greedy answer."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    made: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": [*images, {"type": "text", "text": question}]}],
        "temperature": 0,
        "max_completion_tokens": tokens,
    }
    return made if options is None else {**made, "mm_processor_kwargs": {"vtprune": options}}


def answer(reply: httpx.Response) -> tuple[str, int]:
    """The text of an answer, and the tokens of its prompt."""
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]
