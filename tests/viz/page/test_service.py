"""The page as a service: its options, its log, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import app
from svg2.errors import UsageError
from svg2.runs.limits import NO_LIMITS, Limits
from tests.tree import ROOT
from viz.page import service


def test_the_options_set_the_limits_of_a_run() -> None:
    assert service.studio_of(service.parse_options([])).limits == Limits()
    assert service.studio_of(service.parse_options(["--minutes", "5"])).limits.seconds == 300
    assert service.studio_of(service.parse_options(["--no-limits"])).limits is NO_LIMITS
    assert service.studio_of(service.parse_options(["--downloads"])).may_download
    assert not service.studio_of(service.parse_options([])).may_download


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "many"])
def test_a_senseless_limit_is_refused(minutes: str, capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        app.main(["--minutes", minutes])
    assert refused.value.code == 2
    assert "--minutes" in capsys.readouterr().err


def test_mcp_without_its_package_is_refused_in_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(service, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'gradio\[mcp\]'"):
        service.check_mcp(service.parse_options(["--mcp"]))
    service.check_mcp(service.parse_options([]))
    monkeypatch.setattr(app, "launch", lambda *_, **__: pytest.fail("it serves"))
    with pytest.raises(SystemExit):
        app.main(["--mcp"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("prompt", ["a secret fox", 'quoted "fox"\nof two lines', "лиса 🦊"])
def test_the_log_is_json_without_prompts(prompt: str) -> None:
    try:
        raise RuntimeError(f"can't tokenize {prompt}")
    except RuntimeError:
        record = logging.LogRecord(
            "viz.page", logging.ERROR, __file__, 1, "A run failed.", None, sys.exc_info()
        )
    record.hidden = (prompt, "")
    record.facts = {"tokens": 96}
    line = json.loads(service.JsonLines().format(record))
    assert (line["event"], line["level"], line["tokens"]) == ("A run failed.", "error", 96)
    assert "RuntimeError" in line["error"]
    assert prompt not in line["error"]
    assert prompt.split()[-1] not in line["error"]


def served(tmp_path: Path) -> tuple[subprocess.Popen, int]:
    """The program, up; its temporary files go below `tmp_path`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"TMPDIR": str(tmp_path), "GRADIO_SERVER_NAME": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"} | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        else:
            return process, port
    pytest.fail("it never came up")


@pytest.mark.slow
def test_a_stopped_server_ends_cleanly_and_what_a_killed_one_left_goes_with_the_next(
    tmp_path: Path,
) -> None:
    killed, _ = served(tmp_path)
    killed.kill()
    killed.wait()
    (left,) = tmp_path.glob("svg2-run-*")  # beside it are the caches of libraries
    (left / "uploads" / "half.png").write_bytes(b"half an upload")
    process, _ = served(tmp_path)
    assert not left.exists()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert list(tmp_path.glob("svg2-run-*")) == []
