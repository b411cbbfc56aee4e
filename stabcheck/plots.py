"""The page's plots: small panels, one for each operation, as inline SVG without a font, a script or a colour of its own.

Colours and fonts are the page's (CSS variables), so that dark, light and print need one drawing. The same data give the same bytes.
No text from results is drawn: titles and legends are the page's to escape.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from stabcheck.results import Report
from stabcheck.verdicts import ULPS
from stabcheck.views import Speed, number

SIZE, BOX = (260 / 72, 165 / 72), (0.125, 0.2, 0.845, 0.74)
BEYOND = 1.12  # where what broke its bound is drawn
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, MUTED, CARD = "#000001", "#000002", "#000003"  # stand for CSS variables
SERIES = tuple(f"#0000{k + 10}" for k in range(len(MARKERS)))
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", CARD: "var(--card)"} | {c: f"var(--s{k})" for k, c in enumerate(SERIES)}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": False,
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
NO_DATE: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
DASHES = (0, (3, 2))
DTYPES = ("fp32", "bf16", "fp16")  # the order of colours
MOST = 12  # panels of a plot
Lines = dict[str, dict[int, float]]  # dtype -> bin -> value
Bins = dict[str, Lines]  # operation -> ...


@dataclass(frozen=True)
class Plot:
    """One kind of plot: what it shows, the names of its series in the order of their colours, (operation, SVG)."""

    title: str
    caption: str
    series: tuple[str, ...]
    panels: list[tuple[str, str]]


def plots(report: Report, times: Sequence[Speed]) -> tuple[list[Plot], list[str]]:
    """What can be drawn, and a line for each plot that cannot, since its data are not there."""
    found = [_of_use(report, *kind) for kind in OF_USE] + [_of_ulps(report), _of_speeds(times)]
    return [plot for plot in found if plot.panels], [
        f"{plot.title}: these results have no data for it." for plot in found if not plot.panels
    ]


# ---- what is drawn

SIZES = {0: "1", 5: "32", 10: "1 k", 15: "32 k", 18: "256 k", 21: "2 M", 25: "32 M", 30: "1 G"}  # floor(log2 V)
MAGNITUDES = {-1: "<1", 4: "1e4", 10: "1e10", 20: "1e20", 30: "1e30", 38: "1e38"}  # floor(log10 |logit|)
OF_USE = (
    ("by_vocab", "Error against vocab size", "vocab size V, rounded down to a power of 2", SIZES),
    ("by_magnitude", "Error against magnitude", "largest finite |logit|", MAGNITUDES),
)


def _of_use(report: Report, key: str, title: str, across: str, names: dict[int, str]) -> Plot:
    data: Bins = defaultdict(lambda: defaultdict(dict))
    for item in report["items"]:
        bins = data[_operation(item)][item["dtype"]]
        for place, value in item["tally"].get(key, {}).items():
            bins[int(place)] = max(number(value), bins.get(int(place), 0.0))
    caption = f"Worst use of the bound by any kernel, property and host against the {across}. Dashed: the bound; above it, what broke it."
    return _plot(title, caption, data, partial(_draw_use, names=names), lambda bins: f"at most {max(bins.values()):.3g} of the bound")


def _draw_use(axes: Axes, series: Sequence[str], lines: Lines, names: dict[int, str]) -> None:
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=DASHES)
    for dtype, bins in lines.items():
        places = sorted(bins)
        axes.plot(places, [min(bins[place], BEYOND) for place in places], clip_on=False, **_look(series.index(dtype)))
    places = sorted({place for bins in lines.values() for place in bins})
    low, high = places[0], max(places[-1], places[0] + 1)
    near = [place for place in names if low <= place <= high]
    axes.set(ylim=(0, 1.2), yticks=[0, 0.5, 1], yticklabels=["0", "0.5", "1"])
    axes.set(xlim=(low - 0.5, high + 0.5), xticks=near, xticklabels=[names[place] for place in near])


def _of_ulps(report: Report) -> Plot:
    counted: dict[str, dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    for item in report["items"]:
        counted[_operation(item)][item["dtype"]].update({int(k): n for k, n in item["tally"].get("ulps", {}).items()})
    data: Bins = {
        operation: {dtype: {k: n / bins.total() for k, n in bins.items() if n} for dtype, bins in lines.items()}
        for operation, lines in counted.items()
    }
    caption = "Share of the elements held against the fp64 reference (logarithmic) by their error, in ulp of the output's format, at most."
    return _plot("Error in ulp", caption, data, _draw_ulps, lambda bins: f"{sum(bins[k] for k in bins if k <= 0):.1%} within 1 ulp")


def _draw_ulps(axes: Axes, series: Sequence[str], lines: Lines) -> None:
    places = sorted({place for bins in lines.values() for place in bins})
    lowest = math.floor(math.log10(min(share for bins in lines.values() for share in bins.values())))
    floor, width = 10.0 ** (lowest - 0.5), 0.84 / len(lines)
    for i, (dtype, bins) in enumerate(lines.items()):
        left = [place - 0.42 + i * width for place in bins]
        heights = [share - floor for share in bins.values()]
        axes.bar(left, heights, width * 0.9, bottom=floor, align="edge", color=SERIES[series.index(dtype)], linewidth=0, clip_on=False)
    powers = range(0, lowest - 1, -max(1, math.ceil(-lowest / 3)))
    axes.set(yscale="log", ylim=(floor, 1), xlim=(places[0] - 0.6, places[-1] + 0.6))
    axes.set(yticks=[10.0**k for k in powers], yticklabels=["1" if k == 0 else f"1e{k}" for k in powers])
    named = places[:: -max(1, math.ceil(len(places) / 9))]
    axes.set(xticks=named, xticklabels=[_ulp(k) for k in named])


def _ulp(k: int) -> str:
    """A class of errors, of at most 2^k; the last takes all above."""
    if k == ULPS[-1]:
        return "more"
    return f"1/{2**-k}" if k < 0 else f"{2**k}" if k < 10 else f"{2 ** (k - 10)}k"


def _of_speeds(times: Sequence[Speed]) -> Plot:
    by: dict[str, list[Speed]] = defaultdict(list)
    for speed in times:
        if speed.floor:
            by[speed.operation].append(speed)
    panels = [(name, _svg(f"speed {name}", _told_speed(name, points), partial(_draw_speed, points=points))) for name, points in by.items()]
    caption = (
        "Time against the floor, both in µs and logarithmic. Dashed: the floor, which is moving the bytes that must be moved at the "
        "bandwidth of a large copy, without a launch. Copy: a copy of the same bytes, with its launch. Measured earlier."
    )
    return Plot("Speed against the floor and peers", caption, ("ours", "fastest peer", "copy"), panels[:MOST])


def _draw_speed(axes: Axes, points: list[Speed]) -> None:
    floors = [p.floor or 0.0 for p in points]
    ends = [min(floors), max(floors)]
    axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=DASHES)
    columns: list[list[float | None]] = [[p.ours for p in points], [p.theirs for p in points], [p.copy for p in points]]
    for k, values in enumerate(columns):
        kept = [(floor, value) for floor, value in zip(floors, values, strict=True) if value]
        axes.plot([floor for floor, _ in kept], [value for _, value in kept], **_look(k) | {"linestyle": ""})
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3) if ends[1] < 200 * ends[0] else (1,), numticks=5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value / 1e3:g}k"))


def _told_speed(operation: str, points: list[Speed]) -> str:
    over = [p.over for p in points if p.over]
    against = [p.ratio for p in points if p.ratio]
    told = [f"{min(over):.2f} to {max(over):.2f} times the floor"]
    told += [f"{min(against):.2f} to {max(against):.2f} times the fastest peer"] if against else []
    return f"Time of {operation}: " + ", ".join(told)


# ---- data


def _operation(item: dict[str, Any]) -> str:
    return str(item["kernel"]).partition("[")[0]


def _plot(title: str, caption: str, data: Bins, draw: Callable[..., None], tell: Callable[[dict[int, float]], str]) -> Plot:
    """A panel for each operation that has data, its dtypes coloured as in all others; `tell` is for those who cannot see it."""
    series = sorted({dtype for lines in data.values() for dtype, bins in lines.items() if bins}, key=_order)
    panels = []
    for name in data:
        if lines := {dtype: data[name][dtype] for dtype in series if data[name].get(dtype)}:
            told = ", ".join(f"{dtype} {tell(bins)}" for dtype, bins in lines.items())
            panels.append((name, _svg(f"{title} {name}", f"{title}, {name}: {told}", partial(draw, series=series, lines=lines))))
    return Plot(title, caption, tuple(series), panels[:MOST])


def _order(dtype: str) -> tuple[int, str]:
    return (DTYPES.index(dtype) if dtype in DTYPES else len(DTYPES), dtype)


# ---- drawing


def _look(k: int) -> dict[str, Any]:
    """Later ones are thinner and smaller, so that one on top of another hides no line."""
    thin = 0.7**k
    kind = {"color": SERIES[k % len(SERIES)], "marker": MARKERS[k % len(MARKERS)], "markeredgewidth": 0}
    return kind | {"linewidth": 0.6 + 1.5 * thin, "markersize": 2.6 + 2.4 * thin}


def _svg(name: str, label: str, draw: Callable[[Axes], None]) -> str:
    """A panel; its name keeps the ids of its shapes apart from those of other panels."""
    with style.context(STYLE | {"svg.hashsalt": f"stabcheck {name}"}, after_reset=True):
        figure = Figure(figsize=SIZE)
        figure.patch.set_visible(False)
        axes = figure.add_axes(BOX)
        axes.patch.set_visible(False)
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=NO_DATE)
    return _slim(written.getvalue(), label)


def _slim(svg: str, label: str) -> str:
    """Only what draws, with the page's colours and font, and a label for those who cannot see it."""
    body = svg[svg.index("<g ", svg.index("</defs>")) : svg.rindex("</svg>")]
    body = re.sub(r"font-family: [^;\"]*;? ?|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"(\.\d\d)\d+", r"\1", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><").replace('xlink:href="', 'href="')
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    return f'<svg viewBox="0 0 260 165" role="img" aria-label="{escape(label)}">{body}</svg>'
