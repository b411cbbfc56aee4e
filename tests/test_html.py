"""The page of a report: one file that needs nothing else, the same from the same results; and as a browser shows it."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_data as data
from report_data import ATTACK, BENCHES

from stabcheck.markdown import markdown
from stabcheck.results import counts, judgement
from stabcheck.weakness import weak

html = pytest.importorskip("stabcheck.html", reason="the page needs the extra `report`: jinja2 and matplotlib").html


class Page(HTMLParser):
    """Tags with their attributes, and the text of some of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text):
        if text.strip() and self.open:
            self.texts.append((self.open[-1], " ".join(text.split())))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def of(self, tag):
        return [text for name, text in self.texts if name == tag]


# ---- what is in it


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (data.report(data.item()), "PASS"),
        (data.everything(), "FAIL"),
        (data.report(data.item(), baselines={"stale": ["a b"]}), "STALE"),
        (data.report(), "NO VERDICT"),
    ],
    ids=["pass", "fail", "stale", "nothing"],
)
def test_the_verdict_is_the_first_thing_told(report, word):
    page = Page(html(report))
    assert page.of("h1") == [word] and page.of("title")[0].startswith(word)
    assert page.of("p")[0] == judgement(report)[1]


@pytest.mark.parametrize(
    "report",
    [data.everything(), data.large(300, 20), data.report(*data.grid(), data.item(outcome="known"))],
    ids=["everything", "large", "known"],
)
def test_markdown_and_page_tell_the_same_counts(report):
    page, table = Page(html(report)), markdown(report).split("\n\n")[2].splitlines()
    told = [line.strip("| ").split(" | ") for line in (table[0], table[2])]
    there = page.of("dt")[: len(counts(report))], page.of("dd")[: len(counts(report))]
    assert list(there) == told == [[name.replace("_", " ") for name in counts(report)], [str(n) for n in counts(report).values()]]


def test_sections_come_in_the_order_of_what_a_reader_asks():
    assert Page(html(data.everything(), BENCHES)).of("h2") == [
        "What makes this verdict weak",
        "Findings (2)",
        "Trials that raised outside the kernel (1)",
        "Mutants not noticed (1)",
        "Accuracy baselines that got worse (2)",
        "Ledger: passes although known to fail (1)",
        "Ledger: entries that match nothing (1)",
        "Baselines missing (1)",
        "Baselines left over (1)",
        "Baselines that can be tightened (1)",
        "Worst use of the bound, property × kernel",
        "Error and speed",
        "Kernels",
        "Speed",
        "Where it ran",
        "How to make it again",
    ]


def test_a_finding_is_told_with_its_text_its_replay_command_and_its_files():
    page = Page(html(data.report(data.item(outcome="failed", findings=[data.finding()]))))
    assert page.of("pre") == [" ".join(data.finding()["text"].split())]
    assert page.of("code")[:3] == [data.finding()["replay"], *data.finding()["files"]]


def test_what_makes_a_pass_weak_is_told_line_by_line():
    report = data.everything()
    assert Page(html(report)).of("li")[: len(weak(report))] == weak(report)


def cells(report):
    """(property, kernel) -> (classes, text) of the heat map."""
    page = html(report)
    kernels = re.findall(r'<th scope="col"[^>]*><div>(.*?)</div>', page)
    lines = re.findall(r'<tr><th scope="row">([^<]*)</th>(<td.*?)</tr>', page[page.index('class="heat"') :].partition("</table>")[0], re.S)
    found = {}
    for name, line in lines:
        for kernel, (tag, text) in zip(kernels, re.findall(r"<td([^>]*)>(.*?)</td>", line, re.S), strict=False):
            found[name, kernel] = (re.sub(r'.*class="([^"]*)".*', r"\1", tag), re.sub("<[^>]*>", "", text).strip())
    return found


def test_a_cell_of_the_heat_map_is_the_worst_use_over_dtypes_with_a_mark_for_what_did_not_hold():
    kernel, other = "temperature_softmax[auto]", "temperature_softmax[online]"
    trials = [data.item(kernel, use=0.3, dtype="fp32"), data.item(kernel, use=0.95), data.item(kernel, "masking", use=0.0)]
    trials += [
        data.item(kernel, "layout", outcome="failed", findings=[data.finding()], use=31.4),
        data.item(kernel, "memory", outcome="failed"),
    ]
    trials += [data.item(kernel, "range", outcome="known", use=0.5), data.item(kernel, "pairs", outcome="unexpected pass", use=0.04)]
    trials += [data.item(kernel, "routes", outcome="skipped"), data.item(kernel, "widening", use=0.2), data.item(other, use=0.1)]
    trials += [data.item(kernel, "widening", dtype="fp16", outcome="skipped")]
    found = cells(data.report(*trials))
    assert {name: found[name, kernel] for name, of in found if of == kernel} == {
        "accuracy": ("u9 first", "0.950"),
        "layout": ("u10 bad first", "31.4 ✗"),
        "masking": ("u0 first", "0"),
        "memory": ("u5 bad first", "0.500 E"),
        "pairs": ("u0 first", "0.040 !"),
        "range": ("u5 first", "0.500 K"),
        "routes": ("off first", "○"),
        "widening": ("u2 first", "0.200 ○"),
    }
    assert found["accuracy", other] == ("u1", "0.100") and found["layout", other][1] == "-"


def test_a_reproducer_that_was_not_under_test_makes_no_cell():
    replayed = data.item(outcome="skipped", kernel="logsumexp[elsewhere]", reason="not under test") | {"corpus": "7f3a2c"}
    assert "elsewhere" not in "".join(kernel for _, kernel in cells(data.report(data.item(), replayed)))


def test_each_architecture_has_a_heat_map_of_its_own():
    page = html(data.report(data.item(use=0.25), data.item(use=0.75, host=data.INTERPRETER)))
    assert page.count('<table class="heat">') == 2 and ">0.250<" in page and ">0.750<" in page


@pytest.mark.parametrize("key", ["by_vocab", "by_magnitude", "ulps"])
def test_a_plot_without_data_is_left_out_and_one_line_says_so(key):
    report = data.report(data.item())
    whole = html(report).count("<figure>")
    del report["items"][0]["tally"][key]
    assert html(report).count("<figure>") == whole - 1
    title = {"by_vocab": "Error against vocab size", "by_magnitude": "Error against magnitude", "ulps": "Error in ulp"}[key]
    assert f"{title}: these results have no data for it." in html(report)


def test_results_of_an_older_version_make_a_page():
    page = html(data.old(data.everything()))
    assert "<figure>" not in page and ">FAIL</h1>" in page and "NVIDIA H200 (sm_90)" in page


def test_what_broke_its_bound_is_drawn_above_it_and_infinities_do_not_break_the_plot():
    endless = data.item(by_vocab={"3": "inf", "4": "nan", 5: 1e30}, by_magnitude={"-1": 0.5})
    page = html(data.report(endless))
    assert "nan" not in re.sub(r'aria-label="[^"]*"', "", page[page.index("<figure>") :])


def test_the_last_class_of_errors_in_ulp_takes_all_above():
    page = html(data.report(data.item(ulps={str(k): 5 for k in range(-3, 13)})))
    labels = re.findall(r">([^<>]+)</text>", page[page.index("<h3>Error in ulp") :])
    assert [label for label in labels if "e-" not in label][:9] == ["more", "1k", "256", "64", "16", "4", "1", "1/4", "1"]


def test_plots_are_told_to_those_who_do_not_see_them():
    page = html(data.report(data.item(by_vocab={"3": 0.25}, by_magnitude={"0": 0.5}, ulps={"-3": 6, "0": 3, "5": 1})))
    labels = " ".join(re.findall(r'aria-label="(Error[^"]*)"', page))
    assert "0.25 of the bound" in labels and "0.5 of the bound" in labels and "90.0% within 1 ulp" in labels


def test_how_to_make_it_again_is_told():
    assert "stabcheck gate --changed-since main" in html(data.everything())
    assert "stabcheck run --profile soak --hypothesis-seed=7<" in html(data.report(data.item(), profile="soak", seed="7"))
    assert "<code>stabcheck run</code>" in html(data.old(data.report(data.item())) | {"profile": "default"})
    assert "stabcheck bench sample --out reports/bench" in html(data.report(data.item()), BENCHES)


# ---- as a file


def test_the_same_results_give_the_same_bytes_in_any_process_and_with_any_settings():
    here = hashlib.sha256(html(data.everything(), BENCHES).encode()).hexdigest()
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": None, "lines.linewidth": 9}):
        assert hashlib.sha256(html(data.everything(), BENCHES).encode()).hexdigest() == here
    program = "import hashlib, report_data as d; from stabcheck.html import html; names = ('softmax', 'logsumexp', 'sample'); "
    program += "print(hashlib.sha256(html(d.everything(), [d.bench(n) for n in names]).encode()).hexdigest())"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "12345"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stdout.strip() == here


@pytest.mark.parametrize(("items", "findings"), [(1000, 50), (4000, 600)])
def test_a_page_is_small_and_says_what_it_left_out(items, findings):
    report = data.large(items, findings)
    page = html(report, BENCHES)
    assert 100_000 < len(page.encode()) < 400_000
    assert page.count("<article") == findings or f"… and {findings - page.count('<article')} more, in results.json" in page
    heads = len(re.findall(r'<th scope="col"[^>]*><div>', page))
    kernels = len({item["kernel"] for item in report["items"]})
    assert heads == kernels or f"… and {kernels - heads} more kernels" in page


def test_texts_without_end_do_not_make_a_page_large():
    long = "x<" * 400_000
    found = [data.finding(f"{k:06}", kind=long, text=long, replay=long) for k in range(60)]
    trials = [data.item(f"logsumexp[{k}{long[:9000]}]", outcome="failed", findings=[f], reason=long) for k, f in enumerate(found)]
    assert len(html(data.report(*trials, profile=long, baselines={"stale": [long] * 500})).encode()) < 400_000


def test_nothing_in_a_page_loads_anything():
    page = html(data.everything(), BENCHES)
    assert "default-src 'none'" in page
    assert "<script" not in page and "@import" not in page and "url(http" not in page and "@font-face" not in page
    assert {link["href"] for link in Page(page).all("link")} == {"data:,"}
    assert not [tag for tag, attributes in Page(page).tags if "src" in attributes or tag in ("iframe", "object", "embed", "form", "base")]
    assert all(a["href"].startswith("https://example.com/") for a in Page(page).all("a"))


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "https://example.com/ onclick=x", 'https://example.com/"x'])
def test_only_an_address_becomes_a_link(address):
    entry = dict.fromkeys(("kernel", "property", "dtype", "kind"), "x") | {"issue": address, "state": "stale"}
    assert Page(html(data.report(data.item(), ledger=[entry]))).all("a") == []


def test_text_of_results_is_never_markup():
    found = data.finding(ATTACK, ATTACK, ATTACK, ATTACK, ATTACK, ATTACK, replay=ATTACK, files=[ATTACK, ATTACK])
    trials = [data.item("logsumexp[" + ATTACK, ATTACK, ATTACK, "failed", [found], host=(ATTACK, ATTACK)) for _ in range(2)]
    entry = dict.fromkeys(("kernel", "property", "dtype", "kind", "issue"), ATTACK) | {"state": "stale"}
    bench = data.bench(ATTACK) | {"device": ATTACK}
    bench["points"][0]["peers"] = {ATTACK: {"median": 1.0}}
    more = {
        "ledger": [entry],
        "profile": ATTACK,
        "seed": ATTACK,
        "versions": {ATTACK: ATTACK},
        "scope": {"since": ATTACK, "left_out": [ATTACK]},
    }
    page = html(data.report(*trials, **more, baselines={"directory": ATTACK, "stale": [ATTACK]}), [bench])
    assert "<script" not in page and page.count("&lt;script&gt;") > 20
    assert {tag for tag, _ in Page(page).tags} <= {tag for tag, _ in Page(html(data.everything(), BENCHES)).tags}


def test_a_reader_of_the_page_by_ear_finds_the_way():
    page = Page(html(data.everything(), BENCHES))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    drawings = [svg for svg in page.all("svg") if "aria-hidden" not in svg]
    assert drawings and all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in drawings)
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    wanted = {
        a.get("aria-labelledby") or a.get("href", "").removeprefix("#") for tag, a in page.tags if "aria-labelledby" in a or tag == "use"
    }
    assert wanted <= set(ids)
