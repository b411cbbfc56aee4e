"""The report as Markdown, for a pull request's comment and a job's summary.

Text from results cannot end a table's cell or a fence, inject HTML, make a link or mention anyone: it passes `plain`, `code` or `fence`.
What is too long for its place is cut, tables first and the findings' first lines last, and the report says what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stabcheck.results import Report, counts, findings, judgement
from stabcheck.views import ADDRESS, WORDS, Bench, Grade, Listing, Speed, about, clean, cut, grades, listings, shown, speeds, told
from stabcheck.weakness import weak

SUMMARY, COMMENT = 900_000, 60_000  # bytes; GitHub takes 1 MiB for a step's summary and 65536 characters for a comment
LINE, NAME, ALL = 1000, 200, 10**9
ACTIVE = re.compile(r"[\\`*~$|<>&]|(?<!\w)_|_(?!\w)|^[\[#+-]|\](?=\()")  # what Markdown would read as more than text


@dataclass(frozen=True)
class Detail:
    """How much is told: the tables, findings in full, findings at all, lines of each list."""

    speed: bool = True
    grades: bool = True
    texts: int = ALL
    firsts: int = ALL
    listed: int = ALL


@dataclass(frozen=True)
class Parts:
    """What there is to tell."""

    head: tuple[str, ...]
    findings: list[str]
    lists: list[Listing]
    weak: list[str]
    grades: list[Grade]
    speeds: list[Speed]


def markdown(report: Report, benches: Sequence[Bench] = (), *, limit: int = SUMMARY) -> str:
    """The report in at most `limit` bytes; the verdict and the counts are always in it."""
    texts = [told(finding) for finding in findings(report).values()]
    parts = Parts(_head(report), texts, listings(report), weak(report), grades(report), speeds(benches))
    for detail in _details(len(texts)):
        text = "\n\n".join([*parts.head, *_cut_note(parts, detail), *_sections(parts, detail)]) + "\n"
        if len(text.encode()) <= limit:
            break
    return text


def _details(found: int) -> Iterator[Detail]:
    """Less and less."""
    yield from (Detail(), Detail(speed=False), Detail(False, False), Detail(False, False, listed=50))
    texts = firsts = found
    while texts:
        texts = texts * 9 // 10
        yield Detail(False, False, texts, listed=50)
    yield Detail(False, False, 0, listed=10)
    while firsts:
        firsts = firsts * 9 // 10
        yield Detail(False, False, 0, firsts, 3)
    yield Detail(False, False, 0, 0, 0)


def _head(report: Report) -> tuple[str, ...]:
    code, line = judgement(report)
    n = counts(report)
    return (
        f"**{WORDS[code]}: {plain(line)}**",
        plain(about(report)),
        table([name.replace("_", " ") for name in n], [[str(count) for count in n.values()]]),
    )


def _sections(parts: Parts, detail: Detail) -> Iterator[str]:
    yield from _findings(parts.findings, detail)
    for one in parts.lists if detail.listed else ():
        yield f"### {one.title} ({len(one.lines)})"
        yield plain(one.advice)
        yield table(
            one.head, [[plain(cell) if ADDRESS.fullmatch(cell) else code(cell) for cell in cells] for cells in one.lines[: detail.listed]]
        )
        yield from _more(len(one.lines), detail)
    if parts.weak and detail.listed:
        yield "### What makes this verdict weak"
        yield "\n".join(f"- {plain(line)}" for line in parts.weak[: detail.listed])
        yield from _more(len(parts.weak), detail)
    if parts.grades and detail.grades:
        yield details(f"Accuracy: {len(parts.grades)} lines, kernel × dtype", grade_table(parts.grades))
    if parts.speeds and detail.speed:
        on = " and ".join(dict.fromkeys(plain(speed.device) for speed in parts.speeds))
        yield details(f"Speed on {on}: {len(parts.speeds)} points, measured earlier", speed_table(parts.speeds))


def _findings(texts: list[str], detail: Detail) -> Iterator[str]:
    if not texts or not detail.firsts:
        return
    yield f"### Findings ({len(texts)})"
    yield from (fence(text) for text in texts[: detail.texts])
    if rest := texts[detail.texts : detail.firsts]:
        yield f"Only the first line of {len(rest)}:"
        yield fence("\n".join(cut(text.partition("\n")[0], NAME) for text in rest))


def _more(lines: int, detail: Detail) -> list[str]:
    return [f"… and {lines - detail.listed} more"] if lines > detail.listed else []


def _cut_note(parts: Parts, detail: Detail) -> list[str]:
    """What is left out, and where it is."""
    found, longest = len(parts.findings), max([len(parts.weak), *(len(one.lines) for one in parts.lists)])
    left_out = [
        (f"the speed table ({len(parts.speeds)} points)", parts.speeds and not detail.speed),
        (f"the accuracy table ({len(parts.grades)} lines)", parts.grades and not detail.grades),
        (f"all but the first line of {found - detail.texts} of {found} findings", detail.texts < found),
        (f"{found - detail.firsts} findings altogether", detail.firsts < found),
        (f"lists beyond their first {detail.listed} lines", detail.listed < longest),
    ]
    if not (told_ := [text for text, is_so in left_out if is_so]):
        return []
    return [f"Too long for here; left out: {', '.join(told_)}. The whole is in results.json and report.html of this run."]


def grade_table(rows: list[Grade]) -> str:
    """Kernel × dtype; the architecture is told where there are several."""
    several = len({grade.arch for grade in rows}) > 1
    head = ["kernel", "dtype", *(["arch"] if several else []), "worst use of bound", "in", "worst ulp", "rows", "examples"]
    lines = []
    for grade in rows:
        names = [grade.kernel, grade.dtype, *([grade.arch] if several else [])]
        results = [shown(grade.use), code(grade.law), shown(grade.ulp), f"{grade.rows:,}", f"{grade.examples:,}"]
        lines.append([*map(code, names), *results])
    return table(head, lines)


def speed_table(rows: list[Speed]) -> str:
    """Ours beside the fastest peer and the floor, point by point."""
    head = ["operation", "dtype", "V", "rows", "ours, µs", "fastest peer, µs", "ours / peer", "floor, µs", "ours / floor"]
    lines = []
    for s in rows:
        peer = [f"{s.theirs:.1f} {plain(s.peer)}" if s.theirs else "-", f"{s.ratio:.2f}" if s.ratio else "-"]
        floor = [f"{s.floor:.1f}" if s.floor else "-", f"{s.over:.2f}" if s.over else "-"]
        lines.append([code(s.operation), code(s.dtype), str(s.vocab), str(s.rows), f"{s.ours:.1f}", *peer, *floor])
    return table(head, lines)


# ---- escapes


def plain(text: str) -> str:
    """One line of text that Markdown takes for nothing else; names with _ and [] in them stay readable."""
    one = cut(" ".join(clean(text[: 2 * LINE]).split()), LINE)
    return ACTIVE.sub(lambda found: f"&#{ord(found[0])};", one).replace("@", "@&#8203;")


def code(text: str) -> str:
    """A name in a code span, in a table's cell too."""
    one = cut(" ".join(clean(text[: 2 * NAME]).split()), NAME)
    if one and not set(one) & set("`|\\"):
        return f"`{one}`"
    return "<code>" + re.sub(r"[^A-Za-z0-9 ]", lambda found: f"&#{ord(found[0])};", one) + "</code>"


def fence(text: str) -> str:
    """A block of text, between more backticks than it has in a row."""
    marks = "`" * max([3, *(1 + len(run) for run in re.findall("`+", text))])
    return f"{marks}text\n{text}\n{marks}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells are escaped already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def details(summary: str, body: str) -> str:
    """Folded until somebody looks."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"
