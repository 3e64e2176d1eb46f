"""What of the environment keeps the page from being served is one sentence, or does not matter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

import app
from svg2.errors import UsageError
from svg2.runs.jobs import Studio
from svg2.trace import scratch
from tests.proxies import clear_proxies, proxy
from tests.tree import ROOT
from viz.page.environment import check_numbers, check_upload_folder, reaching_itself
from viz.page.open_traces import OpenTraces

PROXIES = {
    "a dead one": {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
    "in capitals": {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},
    "for all": {"ALL_PROXY": "http://127.0.0.1:9"},
    "SOCKS": {"all_proxy": "socks5://127.0.0.1:9"},
    "of no kind": {"ALL_PROXY": "magic://127.0.0.1:9"},
    "no address": {"http_proxy": "x y", "no_proxy": "example.org"},
}


@pytest.mark.parametrize("given", PROXIES.values(), ids=PROXIES)
def test_the_page_is_served_whatever_proxies_there_are(
    given, studio: Studio, traces: OpenTraces, monkeypatch
) -> None:
    clear_proxies(monkeypatch)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    page = app.launch(
        studio, traces, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    try:
        assert given.items() <= os.environ.items(), "downloads still have their proxies"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert direct.open(page.local_url).status == 200
    finally:
        page.close()


def test_a_public_link_keeps_the_proxies_and_asks_the_own_server_without(monkeypatch) -> None:
    import httpx

    clear_proxies(monkeypatch)
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.2")
    with proxy() as (address, asked), proxy() as (own, own_asked):
        monkeypatch.setenv("HTTP_PROXY", address)
        with reaching_itself(needs_network=True):
            for host in ("127.0.0.1", "localhost"):
                httpx.head(own.replace("127.0.0.1", host))
            httpx.head("http://hub.invalid")
        assert len(own_asked) == 2
        assert asked == ["http://hub.invalid/"]
    assert os.environ["NO_PROXY"] == "example.org"
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize("address", ["magic://127.0.0.1:9", "http://[::1"])
def test_a_public_link_through_a_proxy_that_cannot_be_used_is_refused(monkeypatch, address):
    clear_proxies(monkeypatch)
    monkeypatch.setenv("ALL_PROXY", address)
    refused = pytest.raises(UsageError, match="The proxy that ALL_PROXY names can't be used")
    with refused, reaching_itself(needs_network=True):
        pytest.fail("it goes on")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("GRADIO_SERVER_PORT", text)
            for text in ("", " ", "http", "7860.0", "-1", "0", "70000")
        ),
        *(("GRADIO_SERVER_PORT", "٧٨٦٠"), ("GRADIO_NUM_PORTS", ""), ("GRADIO_DEBUG", "yes")),
    ],
)
def test_a_number_that_gradio_cannot_read_is_refused(monkeypatch, name, text) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=rf"{name} is .*: set it to a number from"):
        check_numbers()


@pytest.mark.parametrize("text", ["7861", " 7861 ", "65535"])
def test_a_port_that_is_one_is_taken(monkeypatch, text) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", text)
    check_numbers()


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [pytest.param(PROXIES["SOCKS"], marks=pytest.mark.nightly), PROXIES["of no kind"]]
)
def test_gradio_is_loaded_whatever_proxies_there_are(given) -> None:
    code = f"import app, os; assert {given!r}.items() <= os.environ.items()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "text"])
def test_the_program_says_it_before_gradio_fails(text) -> None:
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=os.environ | {"GRADIO_SERVER_PORT": text},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("python app.py: GRADIO_SERVER_PORT is ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def no_temp_dir(monkeypatch):
    """Where temporary files lie is found anew."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # is as before in the end, whatever sets it
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


def test_uploads_go_to_a_folder_of_this_process(no_temp_dir, tmp_path, monkeypatch) -> None:
    """Another program's folder beside it, as one of another user, is no hindrance."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "gradio").write_text("of another user")
    check_upload_folder()
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert folder.is_relative_to(scratch.root())
    assert scratch.root().parent == tmp_path
    assert list(folder.iterdir()) == []


def test_a_folder_for_uploads_that_is_not_ours_is_refused(
    no_temp_dir, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "gradio").write_text("a file")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with pytest.raises(UsageError, match="GRADIO_TEMP_DIR to a folder of your own"):
        check_upload_folder()
    monkeypatch.setattr(app, "launch", lambda *_, **__: pytest.fail("it serves"))
    with pytest.raises(SystemExit) as refused:
        app.main([])
    assert refused.value.code == 2
    assert str(tmp_path / "gradio") in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["/proc/gradio", "/dev/null/gradio", "a\0b"])
def test_a_folder_that_cannot_be_made_is_refused(no_temp_dir, folder, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"GRADIO_TEMP_DIR": folder})
    with pytest.raises(UsageError, match="can't be written"):
        check_upload_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_is_refused(tmp_path) -> None:
    folder = tmp_path / "gradio"
    folder.mkdir(mode=0o700)
    child = os.fork()
    if child == 0:  # without what root may do
        try:
            os.environ["GRADIO_TEMP_DIR"] = str(folder)
            os.setuid(65534)
            check_upload_folder()
            os._exit(1)
        except UsageError:
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
