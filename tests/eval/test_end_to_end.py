"""The ways to a score agree: lmms-eval's command line, `vtprune sweep`, several processes, and plain `generate`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import lmms_eval
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

import vtprune
from vtprune.eval.models import load
from vtprune.eval.store import DONE, FAILED, ResultStore
from vtprune.eval.sweep import Sweep
from vtprune.eval.sweep_config import SweepConfig

BUILT_IN = Path(lmms_eval.__file__).parent / "tasks"
PRUNING = "pruner=divprune,budget=9"
LIMIT = 6

_LOCAL = """
include: {source}
task: {task}
dataset_path: {data}
dataset_name: null
dataset_kwargs: {{load_from_disk: true}}
process_docs: null
generation_kwargs: {{max_new_tokens: 4}}
"""


@pytest.fixture(scope="module")
def standard_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE and GQA as lmms-eval defines them, on pictures made here."""
    folder = tmp_path_factory.mktemp("standard")
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, Any]] = []
    for number in range(LIMIT):
        pixels = torch.randint(0, 256, (60, 50 + number, 3), generator=generator, dtype=torch.uint8)
        rows.append(
            {
                "id": str(number),
                "question_id": str(number),
                "question": "is there a red" if number % 2 else "is there a number",
                "answer": "yes" if number % 3 else "no",
                "image": Image.fromarray(pixels.numpy()),
                "imageId": f"picture{number // 2}",
                "image_source": f"picture{number // 2}",
                "category": "random",
            }
        )
    for name, split in (("pope", "test"), ("gqa", "testdev")):
        data = folder / f"{name}-data"
        DatasetDict({split: Dataset.from_list(rows)}).save_to_disk(data)
        text = _LOCAL.format(source=BUILT_IN / name / f"{name}.yaml", task=f"local_{name}", data=data)
        (folder / f"local_{name}.yaml").write_text(text)
    return folder


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def config_of(tiny_folder: Path, output: Path, **changes: Any) -> SweepConfig:
    base: dict[str, Any] = {
        "models": (str(tiny_folder),),
        "pruners": ("divprune",),
        "budgets": ("9",),
        "batch_size": 3,
        "device": "cpu",
        "dtype": "float32",
        "limit": LIMIT,
        "output": output,
        "baselines": False,
        "prefill_repeats": 0,
    }
    return SweepConfig(**base | changes)


def samples_of(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (folder / "samples" / f"{record['key']}.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda sample: int(sample["doc_id"]))


def generated(tiny_folder: Path, questions: list[tuple[Image.Image, str]], tokens: int) -> list[str]:
    """What `generate` says about each question alone."""
    loaded = load(str(tiny_folder), device="cpu", dtype="float32")
    model: Any = loaded.model
    found = []
    with vtprune.pruning(model, "divprune", 9):
        for picture, text in questions:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
            inputs = loaded.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
            new = output[:, inputs["input_ids"].shape[1] :]
            found += loaded.processor.batch_decode(new, skip_special_tokens=True)
    return found


def test_command_line_of_lmms_eval_sweep_and_generate_agree(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, standard_tasks: Path, tmp_path: Path
) -> None:
    tasks = (tiny.TASK, "local_pope", "local_gqa")
    both = tmp_path / "tasks"
    both.mkdir()
    for folder in (tiny_tasks, standard_tasks):
        for path in folder.iterdir():
            (both / path.name).symlink_to(path)
    run(
        *("-m", "lmms_eval", "--model", "vtprune", "--tasks", ",".join(tasks), "--include_path", both),
        *("--model_args", f"pretrained={tiny_folder},dtype=float32,{PRUNING}", "--device", "cpu"),
        *("--batch_size", 2, "--limit", LIMIT, "--output_path", tmp_path / "cli", "--log_samples"),
        cwd=tmp_path,
    )
    sweep = Sweep(config_of(tiny_folder, tmp_path / "sweep", tasks=tasks, include=(both,)))
    outcome = sweep.run()
    assert not outcome.failed
    for task in tasks:
        record = next(r for r in outcome.records if r["task"] == task and r["pruner"] == "divprune")
        mine = [sample["answer"] for sample in samples_of(sweep.store.folder, record)]
        (log,) = (tmp_path / "cli").rglob(f"*_samples_{task}.jsonl")
        lines = sorted(map(json.loads, log.read_text().splitlines()), key=lambda line: int(line["doc_id"]))
        assert [line["filtered_resps"] for line in lines] == mine, task
        assert len(mine) == LIMIT
        assert len(set(mine)) > 1
        found = sweep.tasks.load(task)
        questions = []
        for doc in list(found.eval_docs)[:LIMIT]:
            questions.append((found.doc_to_visual(doc)[0], found.doc_to_text(doc)))
        assert generated(tiny_folder, questions, 3 if task == tiny.TASK else 4) == mine, task
    pope = next(r for r in outcome.records if r["task"] == "local_pope" and r["pruner"] == "divprune")
    assert pope["metric"] == "pope_accuracy"
    scores = [sample["scores"]["pope_accuracy"] for sample in samples_of(sweep.store.folder, pope)]
    assert sum(scores) / LIMIT == pytest.approx(pope["value"])


def test_killed_sweep_resumes_to_the_same_results(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    grid: dict[str, Any] = {
        "pruners": ("divprune", "random", "visionzip", "fastv(layer=2)"),
        "budgets": ("18", "9"),
        "limit": None,
    }
    config = config_of(tiny_folder, tmp_path / "killed", tasks=(tiny.TASK,), include=(tiny_tasks,), **grid)
    command = [
        *(sys.executable, "-m", "vtprune", "sweep", "--model", tiny_folder, "--pruners", ",".join(grid["pruners"])),
        *("--budgets", "18,9", "--tasks", tiny.TASK, "--include-path", tiny_tasks, "--output", config.output),
        *("--batch-size", 3, "--device", "cpu", "--dtype", "float32", "--no-baselines", "--prefill-repeats", 0),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    results = config.output / "results.jsonl"
    deadline = time.monotonic() + 300
    while not (results.exists() and len(results.read_text().splitlines()) >= 3):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {record["key"]: record["time"] for record in ResultStore(config.output).records}
    sweep = Sweep(config)
    assert 0 < len(sweep.pending) <= len(sweep.cells) - 3
    outcome = sweep.run()
    assert {record["key"]: record["time"] for record in outcome.records if record["key"] in before} == before
    lines = [json.loads(line)["key"] for line in results.read_text().splitlines()]
    assert sorted(lines) == sorted(cell.key for cell in sweep.cells)
    whole = Sweep(config_of(tiny_folder, tmp_path / "whole", tasks=(tiny.TASK,), include=(tiny_tasks,), **grid))
    for found, expected in zip(outcome.records, whole.run().records, strict=True):
        assert found["status"] == DONE
        assert (found["key"], found["value"], found["kinds"]) == (expected["key"], expected["value"], expected["kinds"])
        assert samples_of(config.output, found) == samples_of(whole.store.folder, expected)


def test_two_processes_share_the_questions_of_a_cell(
    tiny: ModuleType, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--num_machines", 1)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, *launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vtprune", "sweep"),
        *("--model", tiny_folder, "--pruners", "divprune,fastv(layer=99)", "--budgets", 9, "--tasks", tiny.TASK),
        *("--include-path", tiny_tasks, "--output", tmp_path / "two", "--batch-size", 3, "--device", "cpu"),
        *("--dtype", "float32", "--no-baselines", "--prefill-repeats", 1, "--limit", LIMIT - 1),
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=400
    )
    two = ResultStore(tmp_path / "two")
    # The cell that fails in both processes is told, and holds nobody up.
    assert done.returncode == 1, done.stderr[-4000:]
    assert [record["status"] for record in two.records] == [DONE, DONE, FAILED]
    one = Sweep(config_of(tiny_folder, tmp_path / "one", tasks=(tiny.TASK,), include=(tiny_tasks,), limit=LIMIT - 1))
    for found, expected in zip(two.records, one.run().records, strict=False):
        assert found["prefill_seconds"] > 0
        for name in ("key", "value", "kinds", "tokens_kept", "average_tokens", "n", "prefill_flops", "kv_bytes"):
            assert found[name] == expected[name], name
        assert samples_of(two.folder, found) == samples_of(one.store.folder, expected)
