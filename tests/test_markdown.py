"""The Markdown of a report: what is in it, in the space there is; and no text gets out of its place."""

import re

import pytest
import report_data as data
from markdown_it import MarkdownIt

from stabcheck.markdown import code, fence, markdown, plain, table
from stabcheck.results import counts, findings, judgement
from stabcheck.weakness import weak

HOSTILE = [
    "a | b",
    "a \\| b",
    "<script>alert(1)</script>",
    "</code></details><img src=x onerror=alert(1)>",
    "```\n</pre>",
    "` `` ```",
    "[x](javascript:alert(1))",
    "![x](https://example.com/x.png)",
    "[x]: https://example.com",
    "a\nb\r\n\n# c",
    "*bold* _em_ ~~gone~~ $x$",
    "&lt;b&gt; &#124;",
    "\x00\x1b[31m\u202e\ud800",
    "- [ ] task",
    "",
]


def parse(text):
    """Tokens as GitHub's Markdown has them: tables, bare addresses aside."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline(tokens):
    return [child for token in tokens for child in [token, *(token.children or ())]]


def sections(text):
    return re.findall(r"^### (.*?)(?: \(\d+\))?$", text, re.M)


# ---- what is in it


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (data.report(data.item()), "PASS"),
        (data.report(data.item(outcome="failed", findings=[data.finding()])), "FAIL"),
        (data.report(data.item(outcome="failed")), "FAIL"),
        (data.report(data.item(), baselines={"missing": ["a b"]}), "STALE"),
        (data.report(data.item(outcome="skipped", reason="needs a GPU")), "NO VERDICT"),
    ],
    ids=["held", "finding", "error", "stale", "nothing ran"],
)
def test_the_verdict_comes_first_and_in_one_plain_word(report, word):
    assert markdown(report).splitlines()[0] == f"**{word}: {judgement(report)[1]}**"


def test_every_count_is_in_the_first_table():
    report = data.everything()
    head, _, values = (line.strip("| ").split(" | ") for line in markdown(report).split("\n\n")[2].splitlines())
    assert dict(zip(head, map(int, values), strict=True)) == {name.replace("_", " "): n for name, n in counts(report).items()}


def test_findings_are_told_whole_between_fences():
    report = data.everything()
    fences = [token for token in parse(markdown(report)) if token.type == "fence"]
    assert [token.content.rstrip("\n") for token in fences] == [finding["text"] for finding in findings(report).values()]
    assert {token.info for token in fences} == {"text"}


def test_a_finding_whose_text_lacks_its_replay_command_gets_it():
    found = data.finding(text="BROKEN  something")
    assert f"BROKEN  something\n  replay   {found['replay']}\n```" in markdown(data.report(data.item(outcome="failed", findings=[found])))
    assert "replay" not in markdown(data.report(data.item(outcome="failed", findings=[found | {"replay": ""}])))


def test_what_has_to_be_done_is_listed_the_gravest_first():
    text = markdown(data.everything())
    assert sections(text) == [
        "Findings",
        "Trials that raised outside the kernel",
        "Mutants not noticed",
        "Accuracy baselines that got worse",
        "Ledger: passes although known to fail",
        "Ledger: entries that match nothing",
        "Baselines missing",
        "Baselines left over",
        "Baselines that can be tightened",
        "What makes this verdict weak",
    ]
    assert "| `temperature_softmax[split]` | `accuracy.bf16.utilisation` | `0.310 → 0.620` |" in text
    assert "`1.000 → inf`" in text
    assert "| `SM3` |" in text and "SM1" not in text


def test_known_failures_need_no_action_and_are_not_listed():
    entry = {"kernel": "k", "property": "p", "dtype": "fp32", "kind": "wrong", "issue": "https://example.com/1", "state": "known"}
    assert "Ledger" not in markdown(data.report(data.item(), ledger=[entry, entry | {"state": "not run"}]))


def test_what_makes_the_verdict_weak_is_told_line_by_line():
    report = data.everything()
    text = markdown(report)
    assert weak(report)
    assert [line for line in weak(report) if f"- {plain(line)}" not in text.splitlines()] == []


def test_accuracy_is_told_by_kernel_and_dtype_with_the_worst_use_and_ulp():
    far, near = data.item(use=0.9), data.item(property="masking", use=0.4)
    text = markdown(data.report(far, near, data.item(dtype="fp32", outcome="skipped")))
    assert "| `temperature_softmax[auto]` | `bf16` | 0.900 | `accuracy` | 3.600 | 4,000 | 100 |" in text
    assert "`fp32`" not in text
    assert "| arch |" not in text


def test_the_architecture_is_told_where_there_are_several():
    text = markdown(data.report(data.item(), data.item(host=data.INTERPRETER)))
    assert "| `temperature_softmax[auto]` | `bf16` | `interpreter` | 0.500 |" in text


def test_speed_is_told_beside_the_fastest_peer_and_the_floor():
    text = markdown(data.report(data.item()), [data.bench(points=1)])
    assert "| `softmax` | `bf16` | 32000 | 1 | 6.5 | 12.9 torch.compile | 0.50 | 0.5 | 13.05 |" in text
    assert "Speed on NVIDIA H200: 1 points" in text


def test_a_bench_without_peers_and_floor_is_told_as_far_as_it_goes():
    bench = data.bench(points=1)
    bench["points"][0] |= {"peers": {}}
    del bench["points"][0]["floor"]
    assert "| `softmax` | `bf16` | 32000 | 1 | 6.5 | - | - | - | - |" in markdown(data.report(data.item()), [bench])


def test_results_of_an_older_version_are_told():
    text = markdown(data.old(data.everything()))
    assert text.startswith("**FAIL: ")
    assert "| `temperature_softmax[auto]` | `fp32` | 0.300 | `accuracy` | - |" in text


def test_infinite_and_undefined_figures_are_told():
    broken = data.item(use=float("nan")), data.item(dtype="fp32", use=1.0)
    broken[1]["tally"]["total"]["utilisation"] = "inf"
    text = markdown(data.report(*broken))
    assert "| `bf16` | inf |" in text and "| `fp32` | inf |" in text


# ---- nothing gets out of its place


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_stays_in_its_cell_and_is_shown_as_it_is(text):
    tokens = parse(table(["name", "next"], [[code(text), "1"]]))
    assert [token.type for token in tokens].count("td_open") == 2
    shown = "".join(t.content for t in inline(tokens) if t.type in ("text", "code_inline"))
    assert {t.content for t in inline(tokens) if t.type == "html_inline"} <= {"<code>", "</code>"}
    assert not any(t.type in ("link_open", "image", "em_open", "strong_open", "s_open") for t in inline(tokens))
    visible = "".join(c for c in " ".join(text.split()) if c.isprintable())
    assert visible.replace(" ", "") in shown.replace("\ufffd", "").replace(" ", "")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_sentence_stays_one_line_and_is_shown_as_it_is(text):
    tokens = parse(f"- {plain(text)}\n- last")
    assert [token.type for token in tokens].count("list_item_open") == 2
    assert {
        t.type for t in inline(tokens) if t.type.startswith(("html", "link", "image", "em", "strong", "s_", "code", "heading"))
    } == set()
    visible = "".join(c for c in " ".join(text.split()) if c.isprintable())
    shown = "".join(t.content for t in inline(tokens) if t.type == "text")
    assert visible.replace(" ", "") in shown.replace("\ufffd", "").replace(" ", "")


@pytest.mark.parametrize("text", ["```\nout", "a ```` b\n~~~", "````````", "</details>", "plain"])
def test_a_text_stays_within_its_fence(text):
    (token,) = parse(fence(text))
    assert (token.type, token.content) == ("fence", text + "\n")


def test_names_are_readable_where_nothing_in_them_is_special():
    assert code("temperature_softmax[auto]") == "`temperature_softmax[auto]`"
    assert plain("never drawn, temperature_softmax[auto]: V = 2^k ± 1") == "never drawn, temperature_softmax[auto]: V = 2^k ± 1"


def test_nobody_is_mentioned():
    assert "@someone" not in plain("ask @someone")


def test_a_whole_report_of_hostile_text_has_no_markup_but_its_own():
    items = []
    for k, text in enumerate(HOSTILE):
        found = data.finding(id=f"{k:06}", kernel=text, property=text, dtype=text, text=text, replay=text)
        items.append(data.item("logsumexp[" + text, text, text, "failed", [found]))
        items.append(data.item("logsumexp[" + text, text, text, "skipped", reason=text))
    entry = dict.fromkeys(("kernel", "property", "dtype", "kind", "issue"), "<b>|`") | {"state": "stale"}
    report = data.report(
        *items, profile="<i>", ledger=[entry], mutants={"survived": ["<u>|"]}, baselines={"stale": HOSTILE, "directory": "<s>"}
    )
    tokens = parse(markdown(report, [data.bench("<b>|")]))
    html = {t.content.strip() for t in inline(tokens) if t.type == "html_inline"}
    blocks = [t.content.strip() for t in tokens if t.type == "html_block"]
    assert html <= {"<code>", "</code>"}
    assert all(re.fullmatch(r"<details><summary>[^<>]*</summary>|</details>", block) for block in blocks)
    assert len([t for t in tokens if t.type == "fence"]) == len(HOSTILE)
    rows = [len(re.findall("td_open", " ".join(t.type for t in row))) for row in _rows(tokens)]
    assert set(rows) <= {1, 2, 5, 7, 8, 9}


def _rows(tokens):
    starts = [i for i, token in enumerate(tokens) if token.type == "tr_open" and tokens[i + 1].type == "td_open"]
    ends = [next(j for j in range(i, len(tokens)) if tokens[j].type == "tr_close") for i in starts]
    return [tokens[i:j] for i, j in zip(starts, ends, strict=True)]


# ---- in the space there is


@pytest.mark.parametrize("limit", [900_000, 200_000, 60_000, 20_000, 8_000, 2_000])
def test_a_report_keeps_to_its_limit_and_says_what_it_left_out(limit):
    report = data.large(3000, 400)
    text = markdown(report, [data.bench(points=9)] * 20, limit=limit)
    assert 0.5 * min(limit, 300_000) < len(text.encode()) <= limit
    assert text.startswith("**FAIL: ")
    assert f"| {counts(report)['trials']} | " in text
    cut = "The whole is in results.json and report.html" in text
    assert cut == (limit < 900_000)


def test_what_is_cut_goes_in_order_tables_first_and_first_lines_last():
    report, benches = data.large(3000, 100), [data.bench(points=9)] * 20
    sizes = [len(markdown(report, benches).encode()) - 1]
    texts = []
    while sizes[-1] > 3000:
        texts.append(markdown(report, benches, limit=sizes[-1]))
        sizes.append(len(texts[-1].encode()) - 1)
    speed = [i for i, text in enumerate(texts) if "Speed on" in text]
    accuracy = [i for i, text in enumerate(texts) if "<summary>Accuracy" in text]
    full = [text.count("\n  law ") for text in texts]
    firsts = [text.count("BROKEN  ") for text in texts]
    assert speed == [] and accuracy == [0]
    assert full == sorted(full, reverse=True) and full[0] == full[1] == 100 and 0 in full
    assert firsts[full.index(0)] == 100


def test_one_huge_finding_leaves_room_for_the_others():
    found = [data.finding("aaaaaa", text="BROKEN  huge\n" + "x" * 2_000_000), data.finding("bbbbbb")]
    text = markdown(data.report(data.item(outcome="failed", findings=found)), limit=60_000)
    assert "BROKEN  huge" in text and "id bbbbbb" in text
    assert len(text.encode()) <= 60_000


def test_long_lists_are_cut_before_findings_are():
    missing = [f"temperature_softmax[auto] accuracy.bf16.metric_{k}" for k in range(5000)]
    report = data.report(data.item(outcome="failed", findings=[data.finding()]), baselines={"missing": missing})
    text = markdown(report, limit=60_000)
    assert "… and 4950 more" in text and "\n  law " in text and "### Baselines missing (5000)" in text


def test_nothing_at_all_is_told_too():
    text = markdown(data.report())
    assert text.startswith("**NO VERDICT: ") and "###" not in text
