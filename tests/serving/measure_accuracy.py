"""vLLM's answers against those of a sweep: `PYTHONPATH=tests python -m serving.measure_accuracy FOLDER`.

Run it in the environment that `.ci/vllm` makes, on the folder of a sweep over the embedded scenes in float32 with
packed positions: for each cell whose method can be served the same questions are asked of vLLM.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# First: it sets what vLLM reads when it is imported.
from serving.engines import LLAVA, answers, engine

from vtprune.adapters.vllm.eligibility import refusal
from vtprune.budget import Budget
from vtprune.eval.embedded import MODEL_DIR, load_questions
from vtprune.eval.embedded.scenes import render
from vtprune.eval.grid import parse_pruner

ANSWER = 4
"""Tokens of an answer, at most, as in `eval/tasks/vtprune_scenes.yaml`."""


def served_cells(folder: Path) -> list[dict[str, Any]]:
    """Finished cells of methods that vLLM can run, in the order of the sweep.

    Raises:
        ValueError: The sweep differs from what vLLM does in more than the engine.
    """
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for record in map(json.loads, lines):
        tokens = record["budget"].get("tokens")
        if record["status"] != "done" or tokens is None or record["pruner"] == "full":
            continue
        if (record["task"], record["dtype"], record["positions"]) != ("vtprune_scenes", "float32", "pack"):
            raise ValueError("sweep with --tasks vtprune_scenes --dtype float32 --positions pack")
        if refusal(parse_pruner(record["label"]), Budget(tokens=tokens)) is None:
            found.append(record)
    return found


def main() -> None:
    """Prints a table, one row a cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the sweep")
    folder = parser.parse_args().folder
    cells = served_cells(folder)
    questions = load_questions()[: max(record["n"] for record in cells)]
    pictures = [render(one.scene) for one in questions]
    print("| method | tokens | prompts of that length | equal answers | right, vLLM | right, sweep |")
    print("|---|--:|--:|--:|--:|--:|")
    with engine(MODEL_DIR, LLAVA, {"pruner": "divprune", "budget": 64}) as llm:
        tokenizer = llm.get_tokenizer()
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for one in questions
        ]
        words = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) - 1 for prompt in prompts]
        for record in cells:
            options = {"pruner": record["pruner"], "budget": record["budget"]["tokens"]}
            found = answers(llm, prompts, pictures, options, tokens=ANSWER)
            samples = (folder / "samples" / f"{record['key']}.jsonl").read_text(encoding="utf-8").splitlines()
            swept = {sample["id"]: sample for sample in map(json.loads, samples)}
            texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens, _ in found]
            same = sum(text == swept[one.id]["answer"].strip() for text, one in zip(texts, questions, strict=True))
            long = sum(length == more + record["tokens_kept"] for (_, length), more in zip(found, words, strict=True))
            right = sum(text == one.answer for text, one in zip(texts, questions, strict=True))
            cells_of_row = (
                f"{record['tokens_kept']:.0f} | {long} | {same} | {right} | {record['n'] * record['value']:.0f}"
            )
            print(f"| `{record['label']}` | {cells_of_row} |", flush=True)


if __name__ == "__main__":
    main()
