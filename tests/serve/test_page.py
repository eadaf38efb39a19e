"""The search page in Chromium: what a person sees, types and hears of."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
import toy

from rocketqa_paddle import checkpoints
from rocketqa_paddle.records import Passage
from rocketqa_paddle.search.bm25 import BM25Index
from rocketqa_paddle.search.retrieval import CorpusIndex

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

KEY = "a-key"
HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'> & <b>bold</b>"
ODD = (
    Passage("hostile", "<script>window.ran = 1</script>", HOSTILE),
    Passage("chinese", "稠密检索", "先用稠密向量检索候选段落，再由模型排序。"),
    Passage("long", "", "the dog runs over dry fields . " * 200),
    Passage("wide", "x" * 300, "y" * 3000),
)
QUERY = "where is the red dog ?"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def address(best, tmp_path_factory):
    """A service of the toy passages and odd ones, with BM25, a re-ranker and a key."""
    folder = tmp_path_factory.mktemp("serve")
    retriever = checkpoints.load(best / "retriever")
    passages = toy.collection().passages | {passage.id: passage for passage in ODD}
    CorpusIndex(retriever, passages, progress="").save(folder / "index", retriever.digest())
    BM25Index(list(passages.values())).save(folder / "index")
    (folder / "keys").write_text(f"{KEY}\n")
    command = [sys.executable, "-m", "rocketqa_paddle", "serve", "--port", "0", "--name", "toy"]
    command += ["--checkpoint", best / "retriever", "--index", folder / "index"]
    command += ["--reranker", best / "reranker", "--api_key_file", folder / "keys"]
    environment = {**os.environ, "PYTHONPATH": str(toy.ROOT)}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        told = next((line for line in process.stdout if " at http://" in line), "")
        assert told, (folder / "log").read_text()[-3000:]
        yield told.split()[-1]
        process.terminate()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Chromium, 1000 pixels wide."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("the page is tested in Debian's chromium with chromium-driver, which are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for flag in [*FLAGS.split(), "--window-size=1000,900", f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=Service(driver)) as browser:
        yield browser


class Page:
    """The page in a tab, as a person finds their way in it."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def open(self, fragment="", key=KEY):
        self.browser.get(f"{self.address}/health")  # another document of the same origin
        self.browser.execute_script(
            "sessionStorage.clear(); if (arguments[0]) sessionStorage.setItem('rocketqa key', arguments[0])",
            key,
        )
        self.browser.get(f"{self.address}/{fragment}")
        self.until(lambda: self.script("return info !== null") or self.shown("#keyform"))
        self.settle()

    def until(self, condition):
        redrawn = (StaleElementReferenceException, JavascriptException)  # while it was being looked at
        WebDriverWait(self.browser, 30, 0.02, redrawn).until(lambda _: condition())

    def settle(self):
        self.until(lambda: not self.script("return document.body.classList.contains('busy')"))

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def shown(self, selector):
        return self.one(selector).is_displayed()

    def search(self, query):
        self.fill("#q", query)
        self.settle()

    def fill(self, selector, value):
        field = self.one(selector)
        field.clear()
        field.send_keys(value, Keys.ENTER)

    def press(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    @property
    def focused(self):
        element = self.browser.switch_to.active_element
        return element.get_attribute("data-id") or element.get_attribute("id")

    @property
    def fragment(self):
        return self.script("return location.hash")

    @contextmanager
    def offline(self):
        self.browser.set_network_conditions(offline=True, latency=0, throughput=-1)
        try:
            yield
        finally:
            self.browser.delete_network_conditions()

    @contextmanager
    def answering(self, answer):
        """Let every request of pages that are opened have this answer."""
        source = f"window.fetch = async () => new Response({json.dumps(json.dumps(answer))})"
        run = self.browser.execute_cdp_cmd
        made = run("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        try:
            yield
        finally:
            run("Page.removeScriptToEvaluateOnNewDocument", made)


@pytest.fixture
def page(chromium, address):
    """The page, opened with the key and before any search."""
    page = Page(chromium, address)
    page.open()
    return page


def found(address, **asked):
    """What /search answers."""
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{address}/search", json={"queries": [QUERY], **asked}, headers=headers)
    return answer.raise_for_status().json()["results"][0]


def test_the_key_is_asked_for_and_kept_for_the_tab(page):
    page.open("#q=dog&k=2", key="")
    assert page.shown("#keyform") and not page.shown("#form")
    assert page.focused == "key"
    page.fill("#key", "wrong")
    page.until(lambda: "refused" in page.one("#keytold").text)
    page.fill("#key", KEY)
    page.until(lambda: len(page.all(".hit")) == 2)
    page.browser.refresh()
    page.until(lambda: len(page.all(".hit")) == 2)
    assert KEY not in page.one("#curl").get_attribute("textContent")
    page.one("#forget").click()
    page.until(lambda: page.shown("#keyform"))


def test_before_a_search_the_page_says_what_is_served(page):
    assert page.one("h1").text == "toy"
    assert page.one("#served").text == "64 passages · retriever · re-ranker · BM25"
    assert "reads the first 20" in page.one("#welcome").text
    assert page.focused == "q"


def test_a_search_shows_what_the_service_found(page, address):
    page.search(QUERY)
    expected = found(address, k=10)
    assert [hit.get_attribute("data-id") for hit in page.all(".hit")] == [one["id"] for one in expected]
    assert page.texts(".hit h2") == [one["title"] or "Without a title" for one in expected]
    moves = [(one["found_rank"], one["rank"]) for one in expected]
    assert any(before != after for before, after in moves)
    shown = page.texts(".moved > [aria-hidden]")
    assert shown == ["unmoved" if before == after else f"{before} → {after}" for before, after in moves]
    for item, one in zip(page.all(".hit"), expected, strict=True):
        facts = dict(
            zip(*(texts(item, f"dl div:not(:first-child) {tag}") for tag in ("dt", "dd")), strict=True)
        )
        scores = {"Score": "score", "Retriever": "retriever_score", "Re-ranker": "reranker_score"}
        assert {name: float(facts[name]) for name in scores} == {
            name: pytest.approx(one[key], abs=0.006) for name, key in scores.items()
        }
    assert page.one("#status").text.startswith("10 passages in ")
    assert page.one("#status").get_attribute("role") == "status"
    marks = {text.lower() for text in page.texts("mark")}
    assert marks <= {"red", "dog"} and marks, "common words such as `the` are not marked"
    assert not [line for line in page.browser.get_log("browser") if "Security Policy" in line["message"]]


def texts(element, selector):
    return [part.text for part in element.find_elements(By.CSS_SELECTOR, selector)]


def test_options_are_sent_and_stand_in_the_address(page, address):
    page.search(QUERY)
    page.fill("#k", "3")
    page.settle()
    page.fill("#depth", "0")
    page.until(lambda: not page.all(".moved") and len(page.all(".hit")) == 3)
    assert page.fragment == "#q=where+is+the+red+dog+%3F&k=3&depth=0"
    page.one("#fuse").click()
    page.until(lambda: page.fragment.endswith("&fuse=rrf"))
    page.settle()
    expected = [one["id"] for one in found(address, k=3, depth=0, fuse="rrf")]
    page.until(lambda: [hit.get_attribute("data-id") for hit in page.all(".hit")] == expected)
    assert '"fuse":"rrf"' in page.one("#curl").get_attribute("textContent")


def test_the_answer_is_there_as_json(page, address):
    page.open("#q=where+is+the+red+dog+%3F&k=2")
    tab = page.browser.current_window_handle
    page.one("#json").click()
    page.until(lambda: len(page.browser.window_handles) == 2)
    page.browser.switch_to.window(next(other for other in page.browser.window_handles if other != tab))
    try:
        page.until(lambda: page.one("body").text)
        shown = json.loads(page.one("pre").get_attribute("textContent"))
    finally:
        page.browser.close()
        page.browser.switch_to.window(tab)
    assert shown["results"] == [found(address, k=2)]


def test_back_and_forward_repeat_searches_and_no_address_has_a_query(page):
    page.search("blue cat")
    page.search("green horse")
    page.browser.back()
    page.until(lambda: page.one("#q").get_attribute("value") == "blue cat")
    page.settle()
    assert {text.lower() for text in page.texts("mark")} <= {"blue", "cat"}
    page.browser.back()
    page.until(lambda: page.texts("#welcome h2") == ["64 passages to search"])
    page.browser.forward()
    page.browser.forward()
    page.until(lambda: page.one("#q").get_attribute("value") == "green horse")
    page.settle()
    asked = page.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {address.removeprefix(page.address) for address in asked} == {"/info", "/search"}


def test_the_keyboard_is_enough(page):
    page.search(QUERY)
    ids = [hit.get_attribute("data-id") for hit in page.all(".hit")]
    page.press(Keys.ARROW_DOWN)
    assert page.focused == ids[0]
    page.press(Keys.ARROW_DOWN)
    assert page.focused == ids[1]
    assert page.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(Keys.ARROW_UP, Keys.ARROW_UP)
    assert page.focused == "q"
    page.press(Keys.ARROW_DOWN, "/")
    assert page.focused == "q"
    page.press("zebra", Keys.ENTER)  # what was there is selected
    page.until(lambda: page.fragment == "#q=zebra&k=10")


def test_a_passage_is_never_read_as_html(page):
    page.open("#q=bold+dog&k=100")
    hostile = page.one("[data-id=hostile]")
    assert hostile.find_element(By.CSS_SELECTOR, "h2").text == "<script>window.ran = 1</script>"
    assert hostile.find_element(By.CSS_SELECTOR, ".text").text == HOSTILE
    assert texts(hostile, "mark") == ["bold"]
    assert not page.all("#hits script, #hits img, #hits b")
    assert page.script("return window.ran") is None


def test_the_policy_allows_the_script_of_the_page_alone(address):
    policy = httpx.get(f"{address}/").headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy


def test_chinese_words_are_marked_without_spaces(page):
    page.open("#q=%E4%BB%80%E4%B9%88%E6%98%AF%E7%A8%A0%E5%AF%86%E6%A3%80%E7%B4%A2&k=100")  # 什么是稠密检索
    chinese = page.one("[data-id=chinese]")
    assert texts(chinese, "h2 mark") == ["稠密检索"]
    assert texts(chinese, ".text mark") == ["稠密", "检索"]


@pytest.mark.parametrize(
    ("query", "text", "marks"),
    [
        (
            "captured outputs",
            "Capture the output of capture_output",
            ["Capture", "output", "capture", "output"],
        ),
        ("the who", "The Who", ["The", "Who"]),
        ("café", "CAFE, cafés and decaf", ["CAFE", "cafés"]),
        ("run", "runs running outrun", ["runs", "running"]),
        ("データ", "大きなデータベース", ["データ"]),
        ("?!", "what?!", []),
    ],
)
def test_words_are_marked(page, query, text, marks):
    code = """
      const [query, text] = arguments;
      return marked(text, termsOf(query)).map((part) => [part.localName, part.textContent ?? part]);
    """
    parts = page.script(code, query, text)
    assert [content for name, content in parts if name] == marks
    assert "".join(content for _, content in parts) == text


def test_long_passages_are_cut_and_opened_by_key(page):
    page.open("#q=dry+fields&k=100")
    text = page.one("[data-id=long] .text")
    short = text.size["height"]
    page.script("document.querySelector('[data-id=long]').focus()")
    page.press(Keys.ENTER)
    assert text.size["height"] > 3 * short
    assert page.one("[data-id=long] .more").get_attribute("aria-expanded") == "true"
    page.press(Keys.ENTER)
    assert text.size["height"] == short
    assert not page.one("[data-id=chinese] .more").is_displayed()


def test_a_phone_scrolls_in_one_direction(page):
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        page.open("#q=dog&k=100")
        assert len(page.all(".hit")) == 64
        assert page.script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        wide = "return [...document.querySelectorAll('.hit *')].filter((one) => one.scrollWidth > 360).length"
        assert page.script(wide) == 0
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_refused_search_says_why(page):
    page.open("#q=dog&k=0")
    assert page.one("#notice").text == (
        "The service refused this search\nbody.k: Input should be greater than or equal to 1"
    )
    page.fill("#k", "1")
    page.until(lambda: len(page.all(".hit")) == 1)
    assert page.one("#notice").text == ""


def test_a_service_that_is_gone_can_be_asked_again(page):
    with page.offline():
        page.search("dog")
        page.until(lambda: "does not answer" in page.one("#notice").text)
    page.one("#notice button").click()
    page.until(lambda: len(page.all(".hit")) == 10)


STUB = """
const [status, body] = arguments;
window.asked = [];
window.fetch = (path, request) => new Promise((resolve, reject) => {
  asked.push(request.signal);
  request.signal.onabort = () => reject(request.signal.reason);
  if (status) resolve(new Response(body, {status}));
});
"""
"""A service that gives one answer to everything, or none."""


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (429, '{"error": "512 requests are waiting"}', ["The service is busy", "512 requests are waiting"]),
        (424, '{"error": "no memory"}', ["The search failed", "no memory"]),
        (
            502,
            "<h1>Bad Gateway</h1>",
            ["The search failed", "Expected JSON, and got something else with status 502."],
        ),
        (200, '{"results": [[]]}', ["No passages found", "Try other words, or fewer of them."]),
    ],
)
def test_other_answers_are_told(page, status, body, told):
    page.script(STUB, status, body)
    page.search("dog")
    page.until(lambda: page.texts("main h2") == told[:1])
    assert told[1] in page.texts("main .notice p")


def test_a_search_cancels_the_one_before(page):
    page.script(STUB)
    page.fill("#q", "dog")
    page.until(lambda: page.one("#status").text == "Searching…")
    page.fill("#q", "cat")
    assert page.script("return asked.map((signal) => signal.aborted)") == [True, False]
    assert page.one("#hits").get_attribute("aria-busy") == "true"
    assert page.one("#notice").text == "", "a search that is cancelled is no failure"


NO_INDEX = {"served_model_name": "m", "version": "1", "search": None, "lengths": {"query": 8, "pair": 9}}


def test_a_model_without_an_index_points_elsewhere(page):
    with page.answering(NO_INDEX):
        page.open()
    assert page.texts("#welcome h2") == ["No index is served here"]
    assert "POST /embed" in page.one("#welcome").text and "POST /rerank" in page.one("#welcome").text
    assert page.shown("#info") and not page.shown("#form")


def test_options_are_there_for_what_is_served(page):
    assert page.shown("#depth") and page.shown("#fuse")
    search = {"passages": 1, "reranker": False, "depth": 0, "bm25": False}
    with page.answering(NO_INDEX | {"search": search}):
        page.open()
    assert page.one("#served").text == "1 passage · retriever"
    assert page.shown("#k") and not page.shown("#depth") and not page.shown("#fuse")
