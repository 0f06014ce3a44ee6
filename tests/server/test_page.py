"""The page at /, in a real browser: type, stream, stop, regenerate, edit, watch the panel move."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import running
from echo_engine import CONTEXT
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_command import serving
from test_life import wait_for

from turbosparse.server.app import Edge

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
SCREENSHOT = Path(__file__).parent.parent.parent / "docs" / "page.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    yield page
    context.close()
    refusals = "Failed to load resource"  # the browser's word on every answer that is not 200
    assert not [text for text in said if not text.startswith(refusals)], "its own complaints"
    server.wait_idle()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> list[str]:
    return page.locator(".assistant .text").all_inner_texts()


def wait_answered(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_question_is_typed_and_its_answer_streams(page):
    ask(page, "slowly say:a longer answer, half a second long")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    wait_for(lambda: 0 < len(answers(page)[0]) < 20)
    expect(page.locator(".assistant .text")).to_have_text("a longer answer, half a second long")
    wait_answered(page)
    expect(page.locator(".assistant .speed")).to_contain_text("36 tokens")
    ask(page, "say:again")
    wait_answered(page)
    assert answers(page)[1] == "again"


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_answer_here_and_in_the_engine(page, server, how):
    ask(page, "endless slowly say:abc")
    wait_for(lambda: "abcabc" in "".join(answers(page)))
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".assistant .speed")).to_have_text("stopped")
    wait_for(lambda: not server.service.engine._streams)
    assert "abcabc" in answers(page)[0], "what came is kept"


def test_regenerate_and_edit_replace_what_follows(page):
    asked: list[list[str]] = []
    page.on(
        "request",
        lambda r: (
            r.method == "POST"
            and asked.append([m["content"] for m in json.loads(r.post_data)["messages"]])
        ),
    )
    ask(page, "say:one")
    wait_answered(page)
    ask(page, "say:two")
    wait_answered(page)
    page.get_by_role("button", name="Regenerate").first.click()
    wait_answered(page)
    assert answers(page) == ["one"]
    page.keyboard.press("ArrowUp")
    page.get_by_label("Edit your message").fill("say:three")
    page.keyboard.press("Enter")
    wait_answered(page)
    expect(page.locator(".assistant .text")).to_have_text("three")
    assert answers(page) == ["three"]
    assert asked == [["say:one"], ["say:one", "one", "say:two"], ["say:one"], ["say:three"]]


def test_settings_are_kept_and_sent(page):
    page.keyboard.press("Alt+s")
    page.get_by_label("System message").fill("be kind")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Most tokens").fill("3")
    page.get_by_role("button", name="Done").click()
    page.reload()
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "say:abcdef")
    body = json.loads(sent.value.post_data)
    assert body["messages"][0] == {"role": "system", "content": "be kind"}
    assert (body["temperature"], body["max_tokens"]) == (0.5, 3)
    wait_answered(page)
    assert answers(page) == ["abc"]
    page.keyboard.press("Alt+n")
    assert page.locator("#messages li").count() == 0


def test_a_refusal_is_shown_where_the_answer_would_be(page):
    ask(page, "fail say:x")
    expect(page.locator(".error")).to_contain_text("told to fail")
    ask(page, "say:" + "x" * CONTEXT)
    expect(page.locator(".error").last).to_contain_text("context holds")


def test_the_text_of_a_model_is_never_html(page):
    ask(page, "say:<img src=x onerror=alert(1)>")
    wait_answered(page)
    assert answers(page) == ["<img src=x onerror=alert(1)>"]


def test_colours_follow_the_system_until_told_otherwise(page):
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Colours: system").click()
    expect(root).to_have_attribute("data-theme", "light")
    page.reload()
    expect(root).to_have_attribute("data-theme", "light")
    page.get_by_role("button", name="Colours: light").click()
    page.get_by_role("button", name="Colours: dark").click()
    expect(root).to_have_attribute("data-theme", "dark")


def pixels(page: Page) -> int:
    """How many pixels of the heat map are painted."""
    return page.evaluate(
        """() => {
            const map = document.getElementById("heat");
            const data = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
            return data.filter((value, i) => i % 4 === 3 && value > 0).length;
        }"""
    )


def test_the_panel_moves_while_something_runs(page):
    expect(page.locator("#status")).to_have_text("idle")
    ask(page, "endless slowly say:abc")
    expect(page.locator("#status")).to_have_text("computing")
    expect(page.locator("#active")).to_have_text("10 %")  # what the echo engine reports
    expect(page.locator("#union")).to_have_text("30 %")
    expect(page.locator("#heat")).to_have_attribute(
        "aria-label", "Active fraction of 2 layers over time: now 5.0 % to 15 %"
    )
    wait_for(lambda: pixels(page) > 0)
    before = pixels(page)
    wait_for(lambda: pixels(page) > before)
    assert 10 < int(page.locator("#speed").inner_text()) < 60, "20 ms a step"
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("idle")


def test_the_page_asks_nobody_but_its_server(server):
    response = server.client.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for name in ("index.html", "style.css", "chat.js", "activity.js"):
        text = server.client.get(f"/page/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
    for path in ("/page/nothing.js", "/page/..%2fapp.py", "/page/../app.py"):
        assert server.client.get(path).status_code == 404


def test_a_guarded_page_asks_for_a_login_and_then_works(browser, checkpoint):
    with running(checkpoint, Edge(api_keys=("secret",))) as server:
        assert httpx.get(server.url, headers={"Accept": "text/html"}).status_code == 401
        login = {"username": "anyone", "password": "secret"}
        context = browser.new_context(http_credentials=login)
        page = context.new_page()
        page.goto(server.url)
        ask(page, "say:in")
        wait_answered(page)
        assert answers(page) == ["in"]
        expect(page.locator("#status")).to_have_text("idle")
        context.close()


@pytest.mark.slow
def test_the_picture_in_the_documentation(browser):
    """With the bundled model; look at it."""
    with serving() as (_, url, _):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(url)
        for question in ("What is activation sparsity?", "Tell me a short story about a fox."):
            ask(page, question)
            wait_answered(page)
        for _ in range(12):
            page.get_by_role("button", name="Regenerate").last.click()
            wait_answered(page)
        page.get_by_role("button", name="Regenerate").last.click()
        expect(page.locator(".assistant.streaming .text")).not_to_be_empty()
        page.screenshot(path=SCREENSHOT)
        context.close()
    assert SCREENSHOT.stat().st_size > 10_000
