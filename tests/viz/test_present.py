"""A lecture: one view at a time, in large type, by keys and buttons."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

TITLES = ["Compare", "Clusters on frames", "Masks and budget", "What it gained", "Trade-off"]


@pytest.fixture
def lecture(opener, trace, open_page):
    """A page opened with `?present=1` and more of a query."""

    def opened(query: str = "", width: int = 1440):
        page = open_page(trace, "#run=1", width=width, fresh=True, reduced_motion="reduce")
        page.goto(f"{opener.address(trace)}?present=1{query}#run=1")
        page.wait_for_selector(".slides")
        return page

    return opened


def where(page) -> str:
    return page.locator(".slides span").inner_text()


def shown(page) -> list[str]:
    return page.locator(".view:not(.offslide)").evaluate_all(
        "(views) => views.filter((v) => v.checkVisibility()).map((v) => v.dataset.view)"
    )


@pytest.mark.parametrize(("on", "back"), [("ArrowRight", "ArrowLeft"), ("PageDown", "PageUp")])
def test_keys_go_through_all_views_and_back(on: str, back: str, lecture) -> None:
    page = lecture()
    seen = []
    for number, title in enumerate(TITLES, 1):
        assert where(page) == f"{number} of 5: {title}"
        assert len(shown(page)) == 1
        seen += shown(page)
        page.keyboard.press(on)
    assert seen == ["compare", "clusters", "masks", "gain", "tradeoff"]
    page.keyboard.press(back)
    assert where(page) == "4 of 5: What it gained"
    assert "present=1" in page.url
    assert "view=gain" in page.url


def test_a_lecture_opens_at_a_view_and_its_type_is_large(lecture) -> None:
    page = lecture("&view=masks")
    assert where(page) == "3 of 5: Masks and budget"
    assert page.locator(".placebar").is_visible()
    assert page.locator(".headbuttons").is_hidden()
    letter = page.locator(".view.masks .side > p").first.evaluate(
        "(p) => parseFloat(getComputedStyle(p).fontSize) * p.currentCSSZoom"
    )
    assert letter >= 18
    mask = page.locator("canvas.mask").first
    page.wait_for_timeout(300)
    assert mask.evaluate("(c) => c.width") > 20  # drawn, though it was hidden at first
    board = page.locator(".board")
    board.press("ArrowRight")  # the mask's own keys
    assert where(page) == "3 of 5: Masks and budget"
    board.press("PageDown")
    assert where(page) == "4 of 5: What it gained"


def test_the_buttons_do_what_the_keys_do(lecture) -> None:
    page = lecture()
    back, on = (page.get_by_role("button", name=f"{way} view") for way in ("Previous", "Next"))
    assert back.is_disabled()
    for _ in TITLES[1:]:
        on.click()
    assert on.is_disabled()
    assert where(page) == "5 of 5: Trade-off"
    back.click()
    assert where(page) == "4 of 5: What it gained"


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_sticks_out_of_a_slide(width: int, lecture) -> None:
    page = lecture(width=width)
    for _ in TITLES:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        page.keyboard.press("PageDown")
