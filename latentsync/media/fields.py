"""Whole frames from interlaced ones, at the same rate."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from av.error import BlockingIOError, EOFError
from av.filter import Graph


def deinterlaced(numbered: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """(number, frame) as they came, made whole by bwdif from the field that was first, looking one frame back and one
    ahead. Frames that are whole already stay bit for bit. The first has none before it."""
    numbers: deque[int] = deque()
    graph: Any = None
    kind = None
    for number, frame in numbered:
        if kind != (kind := (frame.format.name, frame.width, frame.height)):
            yield from _rest(graph, numbers)
            graph = _build(*kind)
        numbers.append(number)
        graph.push(frame)
        yield from _ready(graph, numbers)
    yield from _rest(graph, numbers)


def _rest(graph: Any, numbers: "deque[int]") -> Iterator[tuple[int, Any]]:
    if graph is not None:
        graph.push(None)
        yield from _ready(graph, numbers)


def _ready(graph: Any, numbers: "deque[int]") -> Iterator[tuple[int, Any]]:
    while numbers:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        yield numbers.popleft(), frame


def _build(name: str, width: int, height: int) -> Any:
    graph: Any = Graph()
    chain = [
        graph.add_buffer(width=width, height=height, format=name, time_base=Fraction(1, 90000)),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ]
    for before, after in pairwise(chain):
        before.link_to(after)
    graph.configure()
    return graph
