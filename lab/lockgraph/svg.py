"""A `Focus` goes in, Graphviz input comes out; with Graphviz's layout, an SVG comes out.

The SVG stands alone and inside of a page: no script, nothing from outside, light and dark by the
reader's preference. Colour never tells anything that a line's pattern does not tell too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lab.lockgraph.diff import Change
from lab.lockgraph.focus import WORDS, Focus, counts_text

_CHAR = 7.25  # width of a character of the 12 px monospaced font, in px
_HEIGHT = 24.0
_PAD = 11.0
_SCALE = 72.0  # Graphviz's inches to px
_MARGIN = 10.0
_NAME_CHARS = 46
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# What a per-CPU variable's name becomes in a macro that prints its argument.
_PER_CPU = re.compile(r"\(\{ do \{ .*?typeof\(\((?P<name>.*?)\) \+ 0\).*\}\); \}\)")

_CALM = frozenset({Change.SAME, Change.VARIES, Change.UNTOLD})
_MORE_BEFORE, _MORE_AFTER = "more_before", "more_after"
_STYLE = """
.lockgraph { --lg-ink: #1b2230; --lg-soft: #5b6576; --lg-node: #ffffff; --lg-line: #9aa4b4;
  --lg-focus: #fff3cf; --lg-focus-line: #a86500; --lg-gone: #c1273a; --lg-new: #1d5fbf;
  --lg-page: #ffffff; }
@media (prefers-color-scheme: dark) { .lockgraph { --lg-ink: #e5e9f0; --lg-soft: #9aa5b8;
  --lg-node: #232b38; --lg-line: #66738a; --lg-focus: #453512; --lg-focus-line: #f0b453;
  --lg-gone: #ff7d8c; --lg-new: #7fb0ff; --lg-page: #1a202a; } }
.lockgraph .page { fill: var(--lg-page); }
.lockgraph text { font: 12px ui-monospace, "SFMono-Regular", "DejaVu Sans Mono", Menlo, Consolas,
  monospace; fill: var(--lg-ink); }
.lockgraph .legend text, .lockgraph .more text { fill: var(--lg-soft); }
.lockgraph .legend text { font-family: system-ui, "DejaVu Sans", sans-serif; }
.lockgraph rect.box { fill: var(--lg-node); stroke: var(--lg-line); stroke-width: 1.2; }
.lockgraph .focus rect.box { fill: var(--lg-focus); stroke: var(--lg-focus-line);
  stroke-width: 2; }
.lockgraph .focus text { font-weight: 700; }
.lockgraph .more rect.box { stroke-dasharray: 2 3; }
.lockgraph path.edge { fill: none; stroke: var(--lg-line); stroke-width: 1.1; }
.lockgraph path.e-varies { stroke-dasharray: 1.5 3.5; }
.lockgraph path.e-untold { stroke-dasharray: 6 3 1 3 1 3; }
.lockgraph path.e-gone { stroke: var(--lg-gone); stroke-width: 2.4; stroke-dasharray: 8 5; }
.lockgraph path.e-not-seen { stroke: var(--lg-gone); stroke-width: 1.7; stroke-dasharray: 4 5; }
.lockgraph path.e-new { stroke: var(--lg-new); stroke-width: 3; }
.lockgraph path.e-only-seen { stroke: var(--lg-new); stroke-width: 2;
  stroke-dasharray: 12 3 2 3; }
.lockgraph .head { fill: var(--lg-line); }
.lockgraph .h-gone, .lockgraph .h-not-seen { fill: var(--lg-gone); }
.lockgraph .h-new, .lockgraph .h-only-seen { fill: var(--lg-new); }
"""


def short(label: str, limit: int = _NAME_CHARS) -> str:
    """A class's label for people: macros' leavings folded, the middle of long ones left out."""
    text = _PER_CPU.sub(lambda match: f"per_cpu({match['name'].strip('(&)')})", label)
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    if len(text) <= limit:
        return text
    tail = limit // 2 - 1
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def dot_source(focus: Focus) -> str:
    """What `dot -Tplain` is to lay out: nodes n0, n1, ... in the order of `focus.nodes`."""
    lines = [
        "digraph locks {",
        'rankdir=LR; ranksep=1.1; nodesep=0.13; node [shape=box fixedsize=true label=""];',
        "edge [arrowhead=none headport=w tailport=e];",
    ]
    names = {label: f"n{number}" for number, label in enumerate(focus.nodes)}
    for label, name in names.items():
        lines.append(f"{name} [{_size(short(label))}];")
    for edge in focus.edges:
        # What changed decides the layout: long detours are for what did not.
        weight = 1 if edge.change in _CALM else 3
        lines.append(f"{names[edge.before]} -> {names[edge.after]} [weight={weight}];")
    centre = names[focus.centre[0]]
    if focus.hidden_before:
        lines.append(f"{_MORE_BEFORE} [{_size(_more(focus.hidden_before))}];")
        lines.append(f"{_MORE_BEFORE} -> {centre};")
    if focus.hidden_after:
        lines.append(f"{_MORE_AFTER} [{_size(_more(focus.hidden_after))}];")
        lines.append(f"{centre} -> {_MORE_AFTER};")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _size(text: str) -> str:
    return f"width={(len(text) * _CHAR + 2 * _PAD) / _SCALE:.3f} height={_HEIGHT / _SCALE:.3f}"


def _more(number: int) -> str:
    return f"{number} more, unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    x: float  # of the middle
    y: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    width: float
    height: float
    boxes: dict[str, _Box]
    curves: dict[tuple[str, str], tuple[tuple[float, float], ...]]


def _layout(plain: str) -> _Layout:
    """Read Graphviz's plain format. Raises `ValueError` if it is something else."""
    width = height = 0.0
    boxes: dict[str, _Box] = {}
    curves: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {}
    for line in plain.splitlines():
        word, *rest = shlex.split(line) or [""]
        if word == "graph":
            width, height = float(rest[1]) * _SCALE, float(rest[2]) * _SCALE
        elif word == "node":
            x, y, wide = (float(number) * _SCALE for number in rest[1:4])
            boxes[rest[0]] = _Box(x=x, y=height - y, width=wide)
        elif word == "edge":
            numbers = [float(number) * _SCALE for number in rest[3 : 3 + 2 * int(rest[2])]]
            curves[rest[0], rest[1]] = tuple(
                (x, height - y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)
            )
    if not boxes:
        raise ValueError("no layout")
    return _Layout(width=width, height=height, boxes=boxes, curves=curves)


def svg(focus: Focus, plain: str, *, title: str, ids: str = "lg") -> str:
    """The picture, from what `dot -Tplain` made of `dot_source(focus)`.

    `ids` begins the ids in it: on a page of several pictures, each needs its own.
    """
    layout = _layout(plain)
    names = {label: f"n{number}" for number, label in enumerate(focus.nodes)}
    used = [change for change in _LEGEND if any(edge.change is change for edge in focus.edges)]
    calm = focus.hidden_before or focus.hidden_after
    if calm and Change.SAME not in used:
        used.append(Change.SAME)
    legend, legend_height = _legend(used, layout.width, ids)
    width = layout.width + 2 * _MARGIN
    bottom = layout.height + 2 * _MARGIN
    height = bottom + legend_height
    arcs = [
        _arc(
            layout.curves[names[edge.before], names[edge.after]],
            edge.change,
            f"{edge.before} → {edge.after}: {WORDS[edge.change]} ({counts_text(edge)})",
            ids,
        )
        # What changed lies on top.
        for edge in sorted(focus.edges, key=lambda e: (_LEGEND[::-1].index(e.change), e.before))
    ]
    centre = names[focus.centre[0]]
    for more, ends in (
        (_MORE_BEFORE, (_MORE_BEFORE, centre)),
        (_MORE_AFTER, (centre, _MORE_AFTER)),
    ):
        if more in layout.boxes:
            arcs.insert(0, _arc(layout.curves[ends], Change.SAME, "unchanged", ids))
    nodes = [
        _node(layout.boxes[name], label, focus=label in focus.centre)
        for label, name in names.items()
    ]
    for more, number in ((_MORE_BEFORE, focus.hidden_before), (_MORE_AFTER, focus.hidden_after)):
        if more in layout.boxes:
            nodes.append(_node(layout.boxes[more], _more(number), kind="more"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="lockgraph" role="img" '
            f'viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" height="{height:.0f}">',
            f"<title>{_text(title)}</title>",
            f"<desc>{_text(_description(focus))}</desc>",
            f"<style>{_STYLE}</style>",
            f"<defs>{''.join(_marker(change, ids) for change in used)}</defs>",
            f'<rect class="page" width="{width:.1f}" height="{height:.1f}"/>',
            f'<g transform="translate({_MARGIN} {_MARGIN})">',
            *arcs,
            *nodes,
            "</g>",
            f'<g class="legend" transform="translate({_MARGIN} {bottom:.1f})">',
            legend,
            "</g>",
            "</svg>\n",
        ]
    )


_LEGEND = [
    Change.GONE,
    Change.NOT_SEEN,
    Change.NEW,
    Change.ONLY_SEEN,
    Change.VARIES,
    Change.UNTOLD,
    Change.SAME,
]
_LEGEND_WORDS = {**WORDS, Change.SAME: "unchanged"}


def _description(focus: Focus) -> str:
    """What the picture shows, for those who do not see it."""
    parts = [
        f"{edge.before} → {edge.after}: {WORDS[edge.change]}"
        for edge in focus.edges
        if edge.change not in _CALM
    ] or [f"{edge.before} → {edge.after}" for edge in focus.edges]
    return f"An arrow leads from a lock to one taken inside of it. {'; '.join(parts)}"


def _text(text: str) -> str:
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def _marker(change: Change, ids: str) -> str:
    return (
        f'<marker id="{ids}-{change}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="9" '
        f'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path class="head h-{change}" d="M0 0 8 4 0 8z"/></marker>'
    )


def _arc(points: Sequence[tuple[float, float]], change: Change, title: str, ids: str) -> str:
    first, *rest = points
    path = f"M{first[0]:.1f} {first[1]:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)
    return (
        f'<path class="edge e-{change}" d="{path}" marker-end="url(#{ids}-{change})">'
        f"<title>{_text(title)}</title></path>"
    )


def _node(box: _Box, label: str, *, focus: bool = False, kind: str = "node") -> str:
    left, top = box.x - box.width / 2, box.y - _HEIGHT / 2
    return (
        f'<g class="{kind}{" focus" if focus else ""}"><title>{_text(label)}</title>'
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
        f'height="{_HEIGHT:.0f}" rx="5"/>'
        f'<text x="{box.x:.1f}" y="{box.y + 4.2:.1f}" text-anchor="middle">'
        f"{_text(short(label))}</text></g>"
    )


def _legend(used: Sequence[Change], width: float, ids: str) -> tuple[str, float]:
    """A line and a word for each kind of edge in use, in rows of the picture's width."""
    parts: list[str] = []
    x, row = 0.0, 0
    for change in used:
        word = _LEGEND_WORDS[change]
        wide = 46 + len(word) * 6.9 + 22
        if x and x + wide > width:
            x, row = 0.0, row + 1
        y = 10 + 20 * row
        parts.append(
            f'<path class="edge e-{change}" d="M{x:.1f} {y}h38" marker-end="url(#{ids}-{change})"/>'
            f'<text x="{x + 46:.1f}" y="{y + 4}">{_text(word)}</text>'
        )
        x += wide
    return "".join(parts), (row + 1) * 20.0 + _MARGIN if used else 0.0
