"""Links that scroll, failed fetches, a server that is gone, a reload in a run, downloads."""

from __future__ import annotations

import io
import re
import zipfile
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.app.test_live import larger

pytestmark = pytest.mark.browser

BANNER = "#explorer .lab > .notice"
LINE = "#explorer .banners .notice"


@pytest.fixture
def gentle(visit):
    """Opens pages whose browser may complain: it logs each request that fails."""
    return lambda query="", **options: visit(query, checked=False, **options)


def in_sight(page) -> list[str]:
    """Views whose head stands in the upper third of the window."""
    return page.evaluate(
        """() => [...document.querySelector('#explorer .svg2-explorer').shadowRoot
            .querySelectorAll('.view')]
            .filter((v) => Math.abs(v.getBoundingClientRect().top) < innerHeight / 3)
            .map((v) => v.dataset.view)"""
    )


@pytest.mark.parametrize(
    "view", [*(pytest.param(v, marks=pytest.mark.nightly) for v in ("clusters", "masks")), "gain"]
)
def test_a_link_scrolls_to_what_it_shares(view: str, visit) -> None:
    page = visit("#run=1")
    assert in_sight(page) != [view]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(f"#explorer [data-view={view}]").get_by_role("button", name="Copy link").click()
    page.get_by_text("Link copied").wait_for()
    link = page.evaluate("() => navigator.clipboard.readText()")
    assert parse_qs(urlsplit(link).fragment)["view"] == [view]
    other = visit("#" + urlsplit(link).fragment)
    other.wait_for_function("() => scrollY > 300")
    other.wait_for_timeout(500)
    assert view in in_sight(other)


def test_a_link_without_a_view_stays_at_the_top(visit) -> None:
    page = visit("#run=1&cluster=2&view=nonsense")
    page.wait_for_timeout(500)
    assert page.evaluate("() => scrollY") == 0


def failing(page, times: int, status: int | None):
    """Let the next fetches of `blue-cube` fail: without an answer, or with a status."""
    left = [times]

    def answer(route) -> None:
        if left[0] <= 0:
            route.continue_()
        elif status is None:
            left[0] -= 1
            route.abort()
        else:
            left[0] -= 1
            route.fulfill(status=status, body="no")

    page.route("**/lab/blue-cube/payload", answer)
    return left


def choose_blue_cube(page) -> None:
    page.click("#ready input")
    page.locator("[role=option]", has_text="a blue cube bouncing").click()


@pytest.mark.parametrize(
    ("status", "said"),
    [(None, "The server does not answer."), (503, "The server answered with error 503.")],
)
def test_a_failed_fetch_is_tried_again_and_says_so(status, said, gentle) -> None:
    page = gentle()
    failing(page, 1, status)
    choose_blue_cube(page)
    page.locator(BANNER, has_text=f"{said} Trying again in 1 s.").wait_for()
    page.locator("#explorer .prompt", has_text="a blue cube bouncing").wait_for()
    expect(page.locator(BANNER)).to_be_hidden()


def test_what_fails_for_good_offers_another_try(gentle) -> None:
    page = gentle()
    left = failing(page, 99, 503)
    choose_blue_cube(page)
    again = page.locator(BANNER).get_by_role("button", name="Try again")
    again.wait_for()
    assert "What was shown before stays." in page.locator(BANNER).inner_text()
    assert "a red ball" in page.locator("#explorer .prompt").inner_text()
    left[0] = 0
    again.click()
    page.locator("#explorer .prompt", has_text="a blue cube bouncing").wait_for()


def test_what_is_gone_is_not_asked_for_again(gentle) -> None:
    page = gentle()
    left = failing(page, 99, 404)
    choose_blue_cube(page)
    page.locator(BANNER, has_text="This trace is no longer open on the server.").wait_for()
    assert left[0] == 98


def test_a_lost_line_is_shown_and_its_return(gentle) -> None:
    page = gentle()
    page.route("**/lab/**", lambda route: route.abort())
    page.locator(LINE, has_text="The server has not answered since").wait_for()
    page.unroute("**/lab/**")
    page.locator(LINE, has_text="The server answers again.").wait_for()


def test_a_run_that_a_reload_does_not_find_again_is_offered_again(gentle) -> None:
    page = gentle("?num_inference_steps=40&width=128&height=128")
    larger(page)
    page.fill("#prompt textarea", "a blue cube to the left")
    page.click("#generate")
    progress = page.locator("#status .progress", has_text=re.compile("step [1-9].* of 40"))
    progress.wait_for()
    ended = page.locator(LINE, has_text="A run was under way when this page was reloaded")
    page.reload()
    progress.wait_for()  # it goes on
    page.wait_for_timeout(5000)
    assert ended.is_hidden()
    page.click("#cancel")
    page.locator("#cancel").wait_for(state="hidden")
    # As it is with a server that was restarted meanwhile.
    page.evaluate("() => sessionStorage.setItem('svg2-run', JSON.stringify({ release: false }))")
    page.reload()
    ended.wait_for()
    expect(page.locator("#prompt textarea")).to_have_value("a blue cube to the left")
    ended.get_by_role("button", name="Run it again").click()
    progress.wait_for()
    assert ended.is_hidden()
    page.click("#cancel")
    page.locator("#cancel").wait_for(state="hidden")
    page.reload()
    page.locator("#explorer .metrics").wait_for()
    assert page.locator(LINE).all_inner_texts() == ["", ""]  # nothing ran, so nothing ended


def test_the_zip_is_offered_in_the_header(visit) -> None:
    page = visit()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download all (zip)").click()
        page.locator("#explorer .zip [role=status]", has_text=re.compile("Making|MB")).wait_for()
    shown = page.locator("#explorer .runs .label").inner_text().split()[2]  # measured run 3 of 6
    assert waiting.value.suggested_filename == f"svg2-export-{shown}.zip"
    names = zipfile.ZipFile(waiting.value.path()).namelist()
    assert {"README.txt", "explorer.html", "result.json"} <= set(names)


@pytest.mark.parametrize("kind", ["GIF", "WebP"])
def test_the_pair_is_saved_as_a_moving_picture(kind: str, visit) -> None:
    page = visit("#run=2")
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f"Save {kind}").click()
    assert waiting.value.suggested_filename == f"svg2-compare-dense-2.{kind.lower()}"
    picture = Image.open(io.BytesIO(waiting.value.path().read_bytes()))
    assert picture.format == kind.upper()
    assert picture.n_frames == int(page.locator("#explorer .count").inner_text().split("/")[1])


def test_a_lecture_goes_from_view_to_view(visit) -> None:
    page = visit("?present=1")
    assert page.locator("#controls").is_hidden()
    assert page.locator("#explorer .slides span").inner_text() == "1 of 5: Compare"
