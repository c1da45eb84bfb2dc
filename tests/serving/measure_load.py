"""Requests per second and time to first token under load: `PYTHONPATH=tests python -m serving.measure_load`.

Run it in the environment that `.ci/vllm FOLDER` makes, with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from serving.servers import answer, as_url, body, server

from vtprune.eval.embedded import MODEL_DIR, load_questions
from vtprune.eval.embedded.scenes import render

BUDGETS = ("1.0", "192", "64")


class Timed(NamedTuple):
    """When a request's first token came, and all of it; in seconds."""

    first: float
    whole: float


def timed(address: str, request: dict[str, Any]) -> Timed:
    """Asks for a stream and watches it."""
    start = time.perf_counter()
    first = None
    with httpx.stream("POST", f"{address}/v1/chat/completions", json={**request, "stream": True}, timeout=600) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if first is None and '"content":"' in line.replace('"content":""', ""):
                first = time.perf_counter() - start
    whole = time.perf_counter() - start
    return Timed(whole if first is None else first, whole)


def kv_bytes(tokens: int) -> int:
    """Keys and values of so many tokens in float32."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(MODEL_DIR).text_config
    size: int = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    return size * tokens


def main() -> None:
    """Starts a server for each budget and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=96, help="for each number at once, each with its own picture")
    parser.add_argument("--threads", default="2", help="of vLLM")
    chosen = parser.parse_args()
    held_out = load_questions()[: chosen.requests]
    requests = [body(one.question, [as_url(render(one.scene))]) for one in held_out]
    more = ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
    print("| tokens per image | at once | requests/s | first token, ms (median, 90 %) | prompt | KV cache, KiB |")
    print("|--:|--:|--:|--:|--:|--:|")
    for budget in BUDGETS:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--pruner", "divprune", "--budget", budget]
            with server(Path(folder) / "log", options, more, threads=chosen.threads) as address:
                first = httpx.post(f"{address}/v1/chat/completions", json=requests[0], timeout=600)
                _, prompt = answer(first)
                for workers in (1, 4, 16):
                    start = time.perf_counter()
                    with ThreadPoolExecutor(workers) as pool:
                        found = list(pool.map(lambda request: timed(address, request), requests))
                    rate = len(found) / (time.perf_counter() - start)
                    firsts = sorted(1e3 * one.first for one in found)
                    middle, late = statistics.median(firsts), firsts[int(0.9 * len(firsts))]
                    kept = "576" if budget == "1.0" else budget
                    cells = f"{rate:.2f} | {middle:.0f}, {late:.0f} | {prompt} | {kv_bytes(prompt) / 1024:.0f}"
                    print(f"| {kept} | {workers} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
