"""Whether the hub can be reached, with and without a proxy in the environment."""

import pytest

from svg2.errors import ModelUnavailable, RequestError
from svg2.models import finding
from svg2.models.finding import is_online, model_spec
from svg2.models.loading import load_pipeline
from tests.proxies import clear_proxies, proxy


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """A hub that only a proxy can find."""
    from huggingface_hub import close_session, constants

    clear_proxies(monkeypatch)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    finding._was_online.cache_clear()
    close_session()
    yield
    finding._was_online.cache_clear()
    close_session()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_the_hub_is_reached_through_a_proxy(monkeypatch, name, status):
    with proxy(status) as (address, asked):
        monkeypatch.setenv(name, address)
        assert is_online()
        assert asked[0].startswith("http://hub.invalid")


def test_the_hub_itself_answers_where_there_is_no_proxy(monkeypatch):
    from huggingface_hub import constants

    with proxy() as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert is_online()
        assert len(asked) == 1


@pytest.mark.parametrize("status", [407, 502, 503, 504])
def test_a_proxy_that_does_not_reach_it_is_named(monkeypatch, status):
    with proxy(status) as (address, _):
        monkeypatch.setenv("HTTP_PROXY", address)
        assert not is_online()
        with pytest.raises(RequestError, match="through the proxy that HTTP_PROXY names"):
            model_spec("someone/tiny")


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9", "127.0.0.1:9", "socks5://127.0.0.1:9", "magic://nowhere", "x y"],
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, address):
    monkeypatch.setenv("all_proxy", address)
    assert not is_online()
    with pytest.raises(
        ModelUnavailable, match="through the proxy that all_proxy names: mend that"
    ):
        load_pipeline(model_spec("wan2.1-1.3b"), device="cuda:0" if _has_gpu() else "cpu")


def _has_gpu():
    import torch

    return torch.cuda.is_available()


def test_without_a_proxy_the_network_is_missing():
    assert not is_online()
    with pytest.raises(RequestError, match="there is no network: connect to one"):
        model_spec("someone/tiny")
