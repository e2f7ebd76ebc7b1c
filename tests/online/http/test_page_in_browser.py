"""The explorer page in a real Chromium, against a real server. Pictures of each state are left in data/screenshots."""

import contextlib
import datetime as dt
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from recsys_batch.online.snapshot.live_overlay import encode_live_record, open_overlay, overlays_folder
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import LiveOrigin, UserRecord, encode_record

PICTURES = Path(__file__).parents[3] / "data" / "screenshots"
WIDE = {"width": 1200, "height": 900}
REST = "() => Promise.allSettled(document.getAnimations().map((one) => one.finished))"
"""Until nothing moves."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "these tests need Chromium (Debian's package chromium)"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page of a server, and all that it asked for and complained about."""

    def __init__(self, browser: Browser, port: int, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.context.set_default_timeout(5000)
        self.page: Page = self.context.new_page()
        self.url = f"http://127.0.0.1:{port}/"
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda told: self.complaints.append(told.text) if told.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str = "") -> Page:
        self.page.goto(self.url + address)
        return self.page

    def order(self, name: str = "online") -> list[str]:
        """Item ids of a list, once it has some."""
        rows = self.page.locator(f"#{name} li[data-id]")
        rows.first.wait_for()
        found: list[str] = rows.evaluate_all("rows => rows.map(row => row.dataset.id)")
        return found

    def answer_to(self, act: Any) -> Any:
        """The answer of the ranker that an action leads to, shown."""
        with self.page.expect_response("**/v1/rank") as met:
            act()
        told: Any = met.value.json()
        expect(self.page.locator("#message")).to_contain_text(f"User {told['user_id']}: {len(told['items'])} items")
        expect(self.page.locator("#online li[data-id]")).to_have_count(len(told["items"]))
        return told

    def picture(self, name: str, *, full: bool = False) -> None:
        self.page.evaluate(REST)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=full)


@pytest.fixture
def visit(browser: Browser, shared_server: Any) -> Iterator[Any]:
    """Opens pages of the shared server; none may complain, or ask another host."""
    visits: list[Visit] = []

    def begin(port: int = shared_server.port, **context: Any) -> Visit:
        visits.append(Visit(browser, port, **context))
        return visits[-1]

    yield begin
    for one in visits:
        one.context.close()
        assert one.complaints == []
        assert all(address.startswith((one.url, "data:")) for address in one.asked), one.asked


def test_a_first_visit_shows_somebody_with_the_nights_order_and_the_requests(visit: Any, shared_server: Any) -> None:
    here = visit()
    page = here.open()
    night = [str(item["item_id"]) for item in shared_server.call("GET", "/v1/users/0/topk?k=20")[1]["items"]]
    assert here.order("batch") == night
    assert here.order("online") == [str(item["item_id"]) for item in shared_server.rank(0, k=20)["items"]]
    assert here.order("history") == [str(13 * n) for n in range(8)]
    page.locator("#candidates-title").click()
    assert len(here.order("candidates")) == 60
    expect(page.locator("#source")).to_have_text("ranked for this request")
    expect(page.locator("#degraded")).to_be_hidden()
    expect(page.locator("#snapshot")).to_contain_text("first")
    expect(page.locator("#stage-names li")).to_have_count(5)
    assert page.locator("#users option").count() == 50 and page.url.endswith("#user=0")


def test_an_item_goes_into_the_session_by_keyboard_alone_and_comes_out_again(visit: Any) -> None:
    here = visit()
    page = here.open()
    before = here.order()
    page.keyboard.press("Tab")
    expect(page.locator("#user")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("5")
    told = here.answer_to(lambda: page.keyboard.press("Enter"))
    of_five = here.order()
    assert of_five == [str(item["item_id"]) for item in told["items"]] != before

    def focused() -> str:
        return str(page.evaluate("() => document.activeElement.closest('#online li')?.dataset.id ?? ''"))

    for _ in range(200):
        if focused() == of_five[2]:
            break
        page.keyboard.press("Tab")
    assert focused() == of_five[2]
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    told = here.answer_to(lambda: page.keyboard.press("Enter"))
    after = here.order()
    assert of_five[2] not in after and [one for one in of_five if one != of_five[2]] != after[:19]
    assert after == [str(item["item_id"]) for item in told["items"]]
    assert focused() in after  # the focus went to a neighbour, not to the top of the page
    assert page.locator("#online .move.up, #online .move.down").count() > 0
    assert f"session={of_five[2]}" in page.url
    chip = page.locator("#session button")
    expect(chip).to_have_text(f"Item {of_five[2]}")
    here.picture("session")
    chip.focus()
    here.answer_to(lambda: page.keyboard.press("Space"))
    assert here.order() == of_five


def test_hour_device_category_and_exclusion_change_what_is_asked(visit: Any) -> None:
    here = visit()
    page = here.open("#user=5")
    neutral = here.order()
    expect(page.locator("#hour")).to_be_disabled()
    here.answer_to(lambda: page.locator("#weekday").select_option(label="Friday"))
    page.locator("#hour").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#hour-told")).to_have_text("17:00")
    with page.expect_request(lambda request: request.url.endswith("/v1/rank") and "tv" in (request.post_data or "")) as met:
        here.answer_to(lambda: page.locator("#device").select_option("tv"))  # its answer is not taken for the next one's
    context = met.value.post_data_json["context"]
    assert context == {"timestamp": "2024-01-05T17:00:00Z", "device": "tv"}
    expect(page.locator("#state")).to_contain_text("20 items")
    assert here.order() != neutral
    wanted = int(neutral[3]) % 20
    told = here.answer_to(lambda: page.locator("#category").select_option(f"category {wanted}"))
    assert told["items"] and all(item["item_id"] % 20 == wanted for item in told["items"])
    first = str(told["items"][0]["item_id"])
    told = here.answer_to(lambda: page.locator("#online .drop").first.click())
    assert first not in here.order() and page.locator("#excluded button").count() == 1
    page.reload()
    assert here.order() == [str(item["item_id"]) for item in told["items"]]  # the address says it all
    here.answer_to(lambda: page.locator("#neutral").click())
    assert here.order() == neutral and page.url.endswith("#user=5")


def test_explaining_shows_a_bar_per_group_of_features(visit: Any) -> None:
    here = visit()
    page = here.open("#user=5&day=4&hour=20&device=tv&session=3")
    here.order()
    told = here.answer_to(lambda: page.locator("#explain").check())
    groups = [name for name, value in told["items"][0]["contributions"].items() if value]
    assert "session" in groups and page.locator("#online li").first.locator("dt").all_text_contents() == groups
    widths = page.locator("#online .track i").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert max(widths) > 20
    here.picture("explained")


def test_somebody_unknown_gets_popular_items_and_the_page_says_why(visit: Any) -> None:
    here = visit()
    page = here.open("#user=5")
    here.order()
    here.complaints.clear()
    page.locator("#user").fill("nobody <b>here</b>")
    here.answer_to(lambda: page.locator("#who button[type=submit]").click())
    expect(page.locator("#degraded")).to_contain_text("Degraded: the snapshot does not know this user")
    expect(page.locator("#source")).to_have_text("a popular list")
    assert page.locator("#state b").count() == 0 and page.locator("#batch li[data-id]").count() == 0
    here.picture("unknown")
    assert all("404" in told for told in here.complaints)  # Chromium itself notes an answer of 404
    here.complaints.clear()


def test_an_older_answer_is_never_shown_under_a_newer_users_name(visit: Any) -> None:
    here = visit()
    page = here.open("#user=9")
    of_nine = here.order("batch")
    page.goto(f"{here.url}#user=5")
    expect(page.locator("#message")).to_contain_text("User 5:")
    held: list[Any] = []
    page.route(re.compile(r"/v1/user\?user_id=7$"), lambda route: held.append(route))
    page.locator("#user").fill("7")
    with page.expect_request(re.compile(r"/v1/user\?user_id=7$")):
        page.locator("#user").press("Enter")
    assert page.locator("#online li[data-id]").count() == 0  # the old one's are gone at once
    page.locator("#user").fill("9")
    here.answer_to(lambda: page.locator("#user").press("Enter"))
    with contextlib.suppress(Error):  # the page has let go of it
        held[0].continue_()
    page.wait_for_timeout(400)
    expect(page.locator("#message")).to_contain_text("User 9:")
    assert here.order("batch") == of_nine and page.url.endswith("#user=9")


def test_a_server_that_asks_for_a_token_gets_it_from_the_field(visit: Any, make: Any, serve: Any, current: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--set", "online.max_age_hours=0.0000001", RECSYS_BATCH_CLIENT_TOKEN="theirs")
    here = visit(server.port)
    page = here.open()
    expect(page.locator("#message")).to_contain_text("asks for a token")
    here.picture("token")
    page.locator("#token").fill("theirs")
    here.answer_to(lambda: page.locator("#token").press("Enter"))
    assert here.order() and "theirs" not in page.url
    expect(page.locator("#degraded")).to_contain_text("Degraded: the snapshot is old")
    page.reload()
    assert here.order()  # kept for this tab
    assert page.evaluate("() => localStorage.length") == 0
    assert all("401" in told for told in here.complaints)
    here.complaints.clear()
    server.process.terminate()
    server.process.wait(20)
    page.locator("#weekday").select_option("0")
    expect(page.locator("#message")).to_contain_text("does not answer")
    assert page.locator("#online li[data-id]").count() == 0
    here.complaints.clear()


LUMINANCE = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (rgb) => rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== "transparent" && !/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const seen = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() && !node.disabled &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
  return seen.map((node) => {
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(parse(behind(node)))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 80)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_by_day_and_by_night(visit: Any, scheme: str) -> None:
    here = visit(color_scheme=scheme)
    page = here.open("#user=5&day=4&hour=20&session=3&explain=1&segment=x")
    here.order()
    page.evaluate(REST)
    ratios = page.evaluate(LUMINANCE)
    assert len(ratios) > 100 and min(ratios)[0] >= 4.5, min(ratios)
    here.picture(scheme)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) == (scheme == "dark")


def test_a_phone_shows_all_of_it_without_scrolling_sideways_and_nothing_moves_for_who_asked_for_rest(visit: Any) -> None:
    here = visit(viewport={"width": 360, "height": 760}, reduced_motion="reduce")
    page = here.open("#user=5&day=4&session=3&explain=1")
    here.order()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    here.answer_to(lambda: page.locator("#online .pick").first.click())
    assert page.evaluate("() => document.getAnimations().length") == 0
    here.picture("narrow", full=True)


def test_the_lists_move_for_everybody_else(visit: Any) -> None:
    here = visit()
    page = here.open("#user=5")
    here.order()
    page.evaluate("() => { window.moved = 0; const real = Element.prototype.animate; "
                  "Element.prototype.animate = function (...given) { window.moved += 1; return real.apply(this, given); }; }")  # fmt: skip
    here.answer_to(lambda: page.locator("#online .pick").nth(2).click())
    assert page.evaluate("() => window.moved") > 0


def test_print_keeps_the_lists_and_leaves_the_controls_out(visit: Any) -> None:
    here = visit()
    page = here.open("#user=5")
    here.order()
    page.emulate_media(media="print")
    expect(page.locator("#who")).to_be_hidden()
    expect(page.locator("#online")).to_be_visible()
    here.picture("print", full=True)


def test_a_refusal_is_told_in_words_and_takes_the_old_list_away(visit: Any) -> None:
    here = visit()
    page = here.open("#user=5")
    here.order()
    page.route("**/v1/rank", lambda route: route.fulfill(status=503, json={"error": "too many requests are waiting: try again"}))
    page.locator("#weekday").select_option("2")
    expect(page.locator("#message")).to_have_text("Not now: too many requests are waiting: try again.")
    assert page.locator("#online li[data-id]").count() == 0
    expect(page.locator("#timing")).to_be_hidden()
    here.complaints.clear()  # Chromium itself notes an answer of 503


@pytest.mark.parametrize("item", ["9007199254740993", '"<img src=x>"'])
def test_large_numbers_and_text_are_the_same_ids_on_the_way_back(visit: Any, item: str) -> None:
    here = visit()
    page = here.open("#user=5")
    here.order()
    answer = (
        '{"user_id":"5","source":"ranker","degraded":null,"snapshot_id":"first","model_version":"m","request_id":"r","timings_ms":{"total":1.5},'
        f'"items":[{{"item_id":{item},"score":0.5,"rank":1,"candidate_rank":null,"title":null}}]}}'
    )
    page.route("**/v1/rank", lambda route: route.fulfill(body=answer, content_type="application/json"))
    here.answer_to(lambda: page.locator("#weekday").select_option("2"))
    plain = item.strip('"')
    assert here.order() == [plain] and page.locator("#online b").text_content() == f"item {plain}"
    with page.expect_request("**/v1/rank") as met:
        page.locator("#online .pick").click()
    assert met.value.post_data_json["context"]["session_item_ids"] == [plain]
    expect(page.locator("#session button")).to_have_text(f"item {plain}")
    page.wait_for_timeout(200)
    here.complaints.clear()  # nobody knows that item: 404


def test_a_list_that_the_stream_refreshes_is_shown_while_somebody_looks(
    visit: Any, make: Any, serve: Any, current: Any, tmp_path: Path
) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--set", "online.live=table", "--set", f"paths.warehouse={tmp_path}")
    overlay = open_overlay(overlays_folder(folder) / "first", "the test")

    def refresh(batch_id: int, through: dt.datetime | None, *codes: int) -> None:
        n = len(codes)
        scores = np.linspace(1.0, 0.5, n, dtype=np.float32)
        record = UserRecord(np.full(16, 0.1, np.float32), 3, None, np.array(codes), scores, np.arange(n), scores)
        origin = LiveOrigin(batch_id, dt.datetime.now(dt.UTC), through)
        overlay.add([(user_key(5, "BIGINT") or b"", encode_live_record(origin, encode_record(record)))], batch_id)

    here = visit(server.port)
    page = here.open("#user=5&session=3")
    assert len(here.order("batch")) == 20
    expect(page.locator("#batch-title")).to_have_text("The night's order")
    expect(page.locator("#lists")).to_be_hidden()
    refresh(1, dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC), 40, 30, 20)
    expect(page.locator("#batch-title")).to_have_text("The live order", timeout=15_000)
    expect(page.locator("#lists")).to_have_text("Live list, with events through 2026-03-01 12:00:00 UTC")
    expect(page.locator("#online-note")).to_contain_text("the live list")
    assert here.order("batch") == ["40", "30", "20"] and sorted(here.order()) == ["20", "30", "40"]
    here.picture("live")
    refresh(2, None, 7, 8)
    expect(page.locator("#batch-note")).to_have_text("Refreshed since the night, with events of no known time", timeout=15_000)
    assert here.order("batch") == ["7", "8"] and page.url.endswith("#user=5&session=3")
    overlay.close()
    page.close()  # it would go on asking a server that has ended
