"""The page of a report as a browser shows it: headless Chromium, spoken to through its DevTools pipe."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import report_data as data
from report_data import ATTACK, BENCHES

html = pytest.importorskip("stabcheck.html", reason="the page needs the extra `report`: jinja2 and matplotlib").html


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--no-first-run"]
QUIET += ["--disable-default-apps", "--host-resolver-rules=MAP * ~NOTFOUND", "--force-color-profile=srgb"]
AS_3_AND_4 = """
import fcntl, os, sys
theirs, ours = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(theirs, 3), os.dup2(ours, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""  # where Chromium looks for its pipes
WAIT = 60  # seconds


class Browser:
    """A headless Chromium, spoken to through two pipes: messages of its DevTools protocol, each ended by a NUL."""

    def __init__(self, program: str, home: Path) -> None:
        theirs, self.out = os.pipe()
        self.into, ours = os.pipe()
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={home}", *QUIET]
        with open(home / "log", "w") as log:
            through = [sys.executable, "-c", AS_3_AND_4, str(theirs), str(ours), *command, "about:blank"]
            self.process = subprocess.Popen(through, pass_fds=(theirs, ours), stdout=log, stderr=log)
        os.close(theirs)
        os.close(ours)
        self.unread, self.count, self.session, self.events = b"", 0, {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def read(self):
        end = time.monotonic() + WAIT
        while b"\0" not in self.unread:
            assert select.select([self.into], [], [], max(0.0, end - time.monotonic()))[0], "the browser does not answer"
            more = os.read(self.into, 1 << 20)
            assert more, "the browser has ended"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        self.count += 1
        os.write(self.out, json.dumps({"id": self.count, "method": method, "params": params} | self.session).encode() + b"\0")
        while (message := self.read()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, path, width=1280, dark=False, media=""):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())
        self.run("1")  # whatever else there is to tell has been told before this answer
        return self

    def run(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def told(self, *methods):
        return [event["params"] for event in self.events if event.get("method") in methods]

    @property
    def complaints(self):
        logged = [one["entry"]["text"] for one in self.told("Log.entryAdded")]
        return logged + [str(one) for one in self.told("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]

    @property
    def requests(self):
        urls = [one["request"]["url"] for one in self.told("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    @property
    def too_wide(self):
        """Columns of pixels that a reader would have to scroll the whole page for."""
        return self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def picture(self):
        image = pytest.importorskip("PIL.Image")
        return image.open(io.BytesIO(base64.b64decode(self.call("Page.captureScreenshot")["data"]))).convert("RGB")

    def close(self):
        self.session = {}
        self.call("Browser.close")
        self.process.wait(WAIT)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        pytest.skip(f"opening the page needs one of {', '.join(BROWSERS)}")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = data.everything()
    attacked = next(item for item in report["items"] if item["outcome"] == "failed" and item["findings"])
    attacked["findings"][0] = data.finding(text=f"BROKEN  {ATTACK}\n  {'long ' * 80}")
    path.write_text(html(report, BENCHES))
    return path


WIDTHS = pytest.mark.parametrize("width", [1280, 390])
SCHEMES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


@WIDTHS
@SCHEMES
def test_the_page_opens_without_a_complaint_a_request_or_a_page_wider_than_its_window(browser, page, width, dark):
    browser.open(page, width, dark)
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []
    assert browser.too_wide == 0


def test_a_request_a_script_and_a_page_too_wide_would_be_noticed(browser, page, tmp_path):
    wrong = '<img src="https://example.com/x.png"><script>alert(1)</script><p style="width: 3000px">wide</p></body>'
    path = tmp_path / "wrong.html"
    path.write_text(re.sub(r"<meta http-equiv.*?>", "", page.read_text()).replace("</body>", wrong.replace("alert(1)", "console.log(1)")))
    browser.open(path, 390)
    assert "https://example.com/x.png" in browser.requests
    assert len(browser.complaints) == 2  # a picture that did not load, and what the script said
    assert browser.too_wide > 2000
    path.write_text(page.read_text().replace("</body>", wrong))
    browser.open(path)  # now with the page's own policy, which forbids both
    assert len(browser.complaints) == 2 and all("Content Security Policy" in text for text in browser.complaints)


@WIDTHS
@SCHEMES
def test_verdict_and_heat_map_are_there_to_see(browser, page, width, dark):
    browser.open(page, width, dark)
    verdict = browser.run(
        "(() => { const r = document.querySelector('h1').getBoundingClientRect(); return [r.top, r.left, r.right, r.bottom] })()"
    )
    assert 0 <= verdict[0] < verdict[3] < 200 and 0 <= verdict[1] < verdict[2] <= width
    seen = """(() => {
        const cell = [...document.querySelectorAll('.heat td')].find(td => td.classList.contains('u5') || td.classList.contains('u8'));
        cell.scrollIntoView({block: 'center', inline: 'center'});
        const r = cell.getBoundingClientRect(), x = Math.round(r.right - 6), y = Math.round(r.top + r.height / 2);
        return [document.elementFromPoint(x, y) === cell, x, y, getComputedStyle(cell).backgroundColor, r.width, r.height];
    })()"""
    on_top, x, y, colour, wide, high = browser.run(seen)
    assert on_top and wide >= 40 and high >= 20
    assert browser.picture().getpixel((x, y)) == tuple(map(int, re.findall(r"\d+", colour)))


def test_a_script_in_a_finding_is_shown_as_text(browser, page):
    browser.open(page)
    assert browser.run("document.querySelectorAll('script').length") == 0
    assert ATTACK in browser.run("document.querySelector('.finding pre').innerText")


CONTRAST = """(() => {
    const numbers = c => c.match(/[\\d.]+/g).map(Number);
    const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b };
    const behind = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
                          if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
    const texts = [...document.querySelectorAll('h1, h2, h3, p, li, dt, dd, th, td, pre, code, summary, a, .kind, b')];
    return texts.filter(e => e.innerText.trim() && e.checkVisibility()).map(e => {
        const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        return [(a + 0.05) / (b + 0.05), e.className + ' ' + e.innerText.slice(0, 40)] }).sort((x, y) => x[0] - y[0]).slice(0, 3) })()"""


@SCHEMES
def test_every_text_can_be_read_against_what_is_behind_it(browser, tmp_path, dark):
    trials = [data.item(f"logsumexp[{k}]", use=k / 10 + 0.05) for k in range(11)]
    report = data.everything()
    path = tmp_path / "report.html"
    path.write_text(html(report | {"items": report["items"] + trials}, BENCHES))
    worst = browser.open(path, dark=dark).run(CONTRAST)
    assert worst[0][0] >= 4.5, worst


@SCHEMES
def test_dark_and_light_are_two_pages_to_the_eye(browser, page, dark):
    browser.open(page, dark=dark)
    corner = browser.picture().getpixel((3, 3))
    assert max(corner) < 60 if dark else min(corner) > 200


def test_what_is_folded_is_printed(browser, page):
    points = "document.querySelector('section details table').checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})"
    assert browser.open(page).run(points) is False
    browser.open(page, 700, media="print")
    assert browser.run(points) is True
    assert browser.run("document.querySelector('section details table').getBoundingClientRect().height") > 100
    assert browser.run("getComputedStyle(document.querySelector('.heat tbody th')).position") == "static"
    assert browser.too_wide == 0
