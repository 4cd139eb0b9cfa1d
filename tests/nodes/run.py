"""What one prompt did on ComfyUI, gathered from its websocket."""

import json
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4
"""Kinds of binary messages."""


class Progress(NamedTuple):
    node: str
    value: float
    total: float


class Text(NamedTuple):
    node: str
    text: str


class Preview(NamedTuple):
    """picture: the bytes of a JPEG or PNG. node: "" where an older server does not say."""

    node: str
    picture: bytes


class Failure(NamedTuple):
    """kind: the node's class; exception: "UserError"; message: what stands on the node."""

    node: str
    kind: str
    exception: str
    message: str


@dataclass
class Run:
    """kinds: the classes of the nodes that were queued, by id. status: success, error, interrupted or refused.

    ran: ids of the nodes that executed, in order (a node that comes from expansion has an id of its own);
    cached: ids of those that did not need to. outputs: what each node shows ({"images": […]}).
    refusals: what was wrong with a prompt that was not even begun, by node. messages: everything, undigested.
    """

    kinds: dict[str, str] = field(repr=False)
    id: str = ""
    status: str = ""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    ran: list[str] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    progress: list[Progress] = field(default_factory=list, repr=False)
    texts: list[Text] = field(default_factory=list, repr=False)
    previews: list[Preview] = field(default_factory=list, repr=False)
    failure: Failure | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    messages: list[tuple[str, Any]] = field(default_factory=list, repr=False)
    seconds: float = 0.0
    _ending: str = "success"

    def check(self) -> "Run":
        """This run, which must have succeeded."""
        assert self.status == "success", f"{self.status}: {self.failure or self.refusals}"
        return self

    def ran_kinds(self) -> list[str]:
        """The classes of the queued nodes that executed."""
        return [self.kinds[node] for node in self.ran if node in self.kinds]

    def shown(self, kind: str, key: str) -> Any:
        """What the nodes of a class show under a key, in one list."""
        found = [self.outputs[node].get(key, []) for node in self.outputs if self.kinds.get(node) == kind]
        return [item for items in found for item in items]

    def stages(self) -> dict[str, list[str]]:
        """Lines of progress text by node."""
        lines = defaultdict(list)
        for node, text in self.texts:
            lines[node].append(text)
        return dict(lines)

    def refuse(self, answer: dict[str, Any]) -> None:
        self.status, found = "refused", answer.get("node_errors") or {}
        self.refusals = {node: "; ".join(map(_sentence, said["errors"])) for node, said in found.items()}
        self.refusals = self.refusals or {"": _sentence(answer.get("error", {}))}

    def take(self, event: str, data: Any) -> None:
        """Note one message; those of other prompts are left alone."""
        if isinstance(data, dict) and data.get("prompt_id", self.id) != self.id:
            return
        self.messages.append((event, data))
        note = getattr(self, f"_on_{event}", None)
        if note is not None:
            note(data)

    def _on_executing(self, data: dict[str, Any]) -> None:
        if data["node"] is not None:
            self.ran.append(data["node"])
        elif "prompt_id" in data:
            self.status = self._ending

    def _on_executed(self, data: dict[str, Any]) -> None:
        self.outputs[data["node"]] = data["output"] or {}

    def _on_execution_cached(self, data: dict[str, Any]) -> None:
        self.cached |= set(data["nodes"])

    def _on_execution_interrupted(self, _: dict[str, Any]) -> None:
        self._ending = "interrupted"

    def _on_execution_error(self, data: dict[str, Any]) -> None:
        self._ending = "error"
        exception = data["exception_type"].rsplit(".", 1)[-1]
        self.failure = Failure(data["node_id"], data["node_type"], exception, data["exception_message"].strip())

    def _on_progress(self, data: dict[str, Any]) -> None:
        self.progress.append(Progress(data["node"], data["value"], data["max"]))

    def _on_text(self, text: Text) -> None:
        self.texts.append(text)

    def _on_preview(self, preview: Preview) -> None:
        self.previews.append(preview)


def decode(message: str | bytes) -> tuple[str, Any]:
    """A websocket message as (event, data): JSON as it is, binary ones as Preview ("preview") or Text ("text")."""
    if isinstance(message, str):
        said = json.loads(message)
        return said["type"], said["data"]
    kind, body = struct.unpack(">I", message[:4])[0], message[4:]
    if kind == TEXT:
        node, text = _split(body)
        return "text", Text(node, text.decode())
    if kind == PREVIEW:
        return "preview", Preview("", body[4:])
    if kind == PREVIEW_WITH_METADATA:
        head, picture = _split(body)
        return "preview", Preview(json.loads(head).get("node_id", ""), picture)
    return f"binary {kind}", body


def _split(body: bytes) -> tuple[str, bytes]:
    length = struct.unpack(">I", body[:4])[0]
    return body[4 : 4 + length].decode(), body[4 + length :]


def _sentence(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    return ": ".join(filter(None, (error.get("message"), error.get("details"))))
