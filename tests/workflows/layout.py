"""Where the nodes of a workflow lie: groups of columns, in rows and stacks, and the note."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..nodes.graphs import Node

TITLE = 30
"""Height of a node's title, which lies above its position."""
HEAD, EDGE = 40, 12
"""A group's title and the room around its nodes."""
GAP, BESIDE = 26, 16
"""Between the nodes of a column, and between columns, groups and the note."""
RAGGED = 90
"""Groups whose lower edges differ by less look as if they were meant to be one line."""

Sizes = dict[str, tuple[float, float, float]]
"""Of a node by its id: width, height, and the height with its title that it takes in any look of the front end."""


@dataclass(frozen=True)
class Note:
    """The text for people; as wide as what it stands in, or as told."""

    height: float
    width: float = 0


@dataclass(frozen=True)
class Group:
    """A titled box around columns of nodes; a number is room. grown: the last node's height after a run."""

    title: str
    columns: list[list[Node | int]]
    grown: float = 0


@dataclass(frozen=True)
class Row:
    parts: "list[Part]"


@dataclass(frozen=True)
class Stack:
    parts: "list[Part]"


Part = Note | Group | Row | Stack


@dataclass
class Placed:
    """nodes: x, y, width, height by id. groups: title, x, y, width, height. note: x, y, width, height."""

    nodes: dict[str, list[float]] = field(default_factory=dict)
    groups: list[tuple[str, list[float]]] = field(default_factory=list)
    note: list[float] = field(default_factory=list)


def lay_out(part: Part, sizes: Sizes) -> Placed:
    out = Placed()
    width, _ = _extent(part, sizes)
    _place(part, 0, 0, width, sizes, out)
    return out


def _extent(part: Part, sizes: Sizes) -> tuple[float, float]:
    """Width and height that it needs."""
    if isinstance(part, Note):
        return part.width, part.height + TITLE
    if isinstance(part, Group):
        widths, heights = zip(*_columns(part, sizes), strict=True)
        return sum(widths) + BESIDE * (len(widths) - 1) + 2 * EDGE, HEAD + max(heights) + EDGE
    inner = [_extent(one, sizes) for one in part.parts]
    (widths, heights), between = zip(*inner, strict=True), BESIDE * (len(inner) - 1)
    if isinstance(part, Row):
        return sum(widths) + between, max(heights)
    return max(widths), sum(heights) + between


def _columns(group: Group, sizes: Sizes) -> Iterator[tuple[float, float]]:
    for number, column in enumerate(group.columns):
        heights = [sizes[one.id][2] if isinstance(one, Node) else one for one in column]
        if group.grown and number == len(group.columns) - 1:
            heights[-1] = max(heights[-1], group.grown + TITLE)
        yield max(sizes[one.id][0] for one in column if isinstance(one, Node)), sum(heights) + GAP * (len(column) - 1)


def _place(part: Part, x: float, y: float, width: float, sizes: Sizes, out: Placed) -> None:
    if isinstance(part, Note):
        out.note = [x, y + TITLE, part.width or width, part.height]
    elif isinstance(part, Group):
        _place_group(part, x, y, sizes, out)
    else:
        first, tallest = len(out.groups), max(_extent(one, sizes)[1] for one in part.parts)
        for one in part.parts:
            wide, high = _extent(one, sizes)
            _place(one, x, y, wide if isinstance(part, Row) else width, sizes, out)
            x, y = (x + wide + BESIDE, y) if isinstance(part, Row) else (x, y + high + BESIDE)
        if isinstance(part, Row):
            _even(out.groups[first:], y + tallest)


def _even(groups: list[tuple[str, list[float]]], bottom: float) -> None:
    """Groups that end almost together end together."""
    for _, box in groups:
        if bottom - box[1] - box[3] < RAGGED:
            box[3] = bottom - box[1]


def _place_group(group: Group, x: float, y: float, sizes: Sizes, out: Placed) -> None:
    wide, high = _extent(group, sizes)
    out.groups.append((group.title, [x, y, wide, high]))
    left = x + EDGE
    for column, (width, _) in zip(group.columns, _columns(group, sizes), strict=True):
        top = y + HEAD + TITLE
        for one in column:
            if isinstance(one, Node):
                out.nodes[one.id] = [left, top, width, sizes[one.id][1]]
            top += GAP + (sizes[one.id][2] if isinstance(one, Node) else one)
        left += width + BESIDE
