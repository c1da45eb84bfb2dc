"""The command as it is typed, and the folder as a Space starts it."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import vtprune.demo
from vtprune.demo.examples import load_examples
from vtprune.eval.models import ModelError

COMPILED = Path(cache_from_source(torch.__file__)).exists()
"""Whether Python finds its bytecode; where none is kept, compiling all that is imported takes longer than the rest."""

FOLDER = Path(vtprune.demo.__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has used so far, which does not depend on what else runs on the machine."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the demo has ended"
        try:
            httpx.get(address, timeout=5)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the demo does not answer")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc")
def test_the_command_starts_and_answers_soon(tmp_path: Path) -> None:
    client: Any = pytest.importorskip("gradio_client")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    run = "from vtprune.cli import app; app()"
    command = [sys.executable, "-c", run, "demo", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(address, process)
            assert cpu_seconds(process) < (20 if COMPILED else 40)
            load_examples(1)[0].picture.save(tmp_path / "picture.png")
            program = client.Client(address, verbose=False)
            spent = []
            for _ in range(2):
                before = cpu_seconds(process)
                found = program.predict(
                    client.handle_file(str(tmp_path / "picture.png")), "what color is the diamond ?", api_name="/ask"
                )
                assert found["pruned"]["answer"] == "orange"
                spent.append(cpu_seconds(process) - before)
            assert min(spent) < 3, "both answers and their timing together"
        finally:
            process.terminate()


def test_a_port_in_use_is_said_before_the_model_is_loaded() -> None:
    app = pytest.importorskip("vtprune.demo.app")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} cannot be had"):
            app.launch("no/such/model", port=port, block=False)


def test_the_folder_is_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card names a program that is there, and that starts the app with the model that a variable names."""
    pytest.importorskip("gradio")
    card = (FOLDER / "README.md").read_text().split("---")[1]
    settings = dict(re.findall(r"^(\w+): (.+)$", card, re.MULTILINE))
    assert settings["sdk"] == "gradio"
    assert (FOLDER / "requirements.txt").read_text().startswith("vtprune[")
    shutil.copy(FOLDER / settings["app_file"], tmp_path / "app.py")
    monkeypatch.setenv("VTPRUNE_MODEL", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=f"model '{tmp_path / 'none'}' is neither"):
        runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
