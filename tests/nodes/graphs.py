"""Workflows in API form, built in code.

g = Graph()
parts = g.node("GetVideoComponents", video=g.node("LoadVideo", file="clip.mp4"))
g.node("PreviewImage", images=parts[0])
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """One node of a graph; node[1] is its second output, the node itself stands for its first."""

    id: str

    def __getitem__(self, output: int) -> list[Any]:
        return [self.id, output]

    def __iter__(self) -> Iterator[list[Any]]:
        raise TypeError("A node does not know how many outputs it has; take them by number.")


@dataclass
class Graph:
    """prompt: what POST /prompt takes, {id: {class_type, inputs}}."""

    prompt: dict[str, dict[str, Any]] = field(default_factory=dict)

    def node(self, kind: str, name: str | None = None, /, **inputs: Any) -> Node:
        """Add a node of that class. name: its id, by default a number. An input may be a value, a Node or node[k]."""
        node = Node(name or str(len(self.prompt) + 1))
        if node.id in self.prompt:
            raise ValueError(f"There is a node {node.id} already.")
        self.prompt[node.id] = {"class_type": kind, "inputs": {key: _wire(value) for key, value in inputs.items()}}
        return node

    def changed(self, node: Node | str, **inputs: Any) -> "Graph":
        """A copy in which that node has other inputs: what a user does between two runs."""
        other = Graph(copy.deepcopy(self.prompt))
        other.prompt[node.id if isinstance(node, Node) else node]["inputs"] |= {k: _wire(v) for k, v in inputs.items()}
        return other


def _wire(value: Any) -> Any:
    return value[0] if isinstance(value, Node) else value
