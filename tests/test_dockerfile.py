"""The Dockerfile's own commands, without Docker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from svg2.runs.jobs import Studio
from tests.tree import ROOT
from viz.page.service import health_route

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def health_check() -> list[str]:
    found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    assert found is not None
    return json.loads(found[1])


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that gives this status on the path of the health check, and 404 elsewhere."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield str(server.server_port)
    finally:
        server.shutdown()
        server.server_close()


def is_healthy(port: str) -> bool:
    python, *arguments = health_check()
    assert python == "python"
    environment = {"GRADIO_SERVER_PORT": port, "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (404, False), (503, False)])
def test_health_is_what_the_page_answers_whatever_the_proxies(status: int, healthy: bool) -> None:
    with answering(status) as port:
        assert is_healthy(port) == healthy


def test_a_page_that_is_gone_is_not_healthy() -> None:
    with answering(200) as port:
        pass
    assert not is_healthy(port)


def test_the_page_serves_what_the_health_check_asks_for() -> None:
    asked = re.search(r"'(/\w+)'", health_check()[-1])
    assert asked is not None
    assert health_route(Studio()).path == asked[1]


def test_the_image_runs_as_the_user_of_spaces_and_serves_to_the_outside() -> None:
    before_app = DOCKERFILE.split("\nCOPY --chown=user . .")[0]
    assert re.search(r"--uid 1000 user\nUSER user\n", before_app)
    assert "USER root" not in DOCKERFILE
    assert "GRADIO_SERVER_NAME=0.0.0.0" in DOCKERFILE
    port = re.search(r"GRADIO_SERVER_PORT=(\d+)", DOCKERFILE)
    assert port is not None
    assert f"EXPOSE {port[1]}\n" in DOCKERFILE
