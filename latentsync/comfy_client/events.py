"""What one prompt does on a ComfyUI server, from its websocket messages and its history. No network here."""

import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..files import parse_json
from .prompt import Prompt, title

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4  # ComfyUI's kinds of binary messages


@dataclass(frozen=True)
class Event:
    """Something that happened: uploading, queued, started, cached, node, progress, text, preview, lost, found. node and
    title say where; done of total how far (for queued: done prompts are ahead); text is the stage in the node's own
    words, or a file's name; picture is a JPEG or PNG."""

    kind: str
    node: str = ""
    title: str = ""
    done: float = 0
    total: float = 0
    text: str = ""
    picture: bytes = field(default=b"", repr=False)


OnEvent = Callable[[Event], None]


class RunFailedError(UserError):
    """The workflow was queued but did not end well. node, title: where, if the server said; details: its traceback."""

    def __init__(self, text: str, *, node: str = "", title: str = "", details: str = "") -> None:
        super().__init__(text)
        self.node, self.title, self.details = node, title, details


class RunMonitor:
    """Follows one prompt through the server's messages: emits events, measures nodes, notices the end."""

    def __init__(self, prompt: Prompt, prompt_id: str, on_event: OnEvent | None) -> None:
        self.prompt, self.prompt_id, self._on_event = prompt, prompt_id, on_event
        self.timings: dict[str, float] = defaultdict(float)
        self.outputs: dict[str, Any] = {}
        self.cached: list[str] = []
        self.failure: Mapping[str, Any] | None = None
        self.succeeded = False
        self.ending = False  # the end was announced: history will have the result in a moment
        self.over = False  # no more messages of this prompt will come
        self._display_names: dict[str, str] = {}
        self._node, self._since = "", time.perf_counter()

    def emit(self, kind: str, node: str = "", **details: Any) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, node, title(self.prompt, node) if node else "", **details))

    def receive(self, message: str | bytes) -> None:
        """One message of the socket; those of other prompts and unknown ones are ignored."""
        if isinstance(message, bytes):
            return self._receive_bytes(message)
        content = _object(message)
        data = content.get("data")
        if isinstance(data, Mapping) and data.get("prompt_id") == self.prompt_id:
            self._receive_json(str(content.get("type")), data)

    def _receive_json(self, kind: str, data: Mapping[str, Any]) -> None:
        match kind:
            case "execution_start":
                self.emit("started")
            case "execution_cached":
                self.cached = [str(node) for node in data.get("nodes", []) if str(node) in self.prompt]
                self.emit("cached", done=len(self.cached), total=len(self.prompt))
            case "executing":
                self._enter(data.get("node"), data.get("display_node"))
            case "progress":
                node = self._display(str(data.get("node")))
                self.emit("progress", node, done=data.get("value", 0), total=data.get("max", 0))
            case "progress_state":
                for node, state in data.get("nodes", {}).items():
                    self._display(str(node), state.get("display_node_id"))
            case "executed":
                self.outputs[str(data.get("node"))] = data.get("output") or {}
            case "execution_error":
                # A blocked node reports itself like this while the rest goes on; it is not in the history.
                self.failure, self.ending = data, data.get("exception_type") != "ExecutionBlocked"
            case "execution_interrupted":
                self.ending = True
            case "execution_success":
                self.succeeded = self.ending = True

    def _enter(self, node: Any, display_node: Any) -> None:
        """A node begins; None: the prompt is done."""
        name = "" if node is None else self._display(str(node), display_node)
        if name != self._node:
            now = time.perf_counter()
            if self._node:
                self.timings[self._node] += now - self._since
            self._node, self._since = name, now
            if name:
                self.emit("node", name)
        if node is None:
            self.ending = self.over = True

    def _display(self, node: str, display_node: Any = None) -> str:
        """The node that the user sees: an expanded one counts as the node that it came from."""
        if display_node is not None:
            self._display_names[node] = str(display_node)
        name = self._display_names.get(node, node)
        return name if name in self.prompt else name.split(".")[0]

    def _receive_bytes(self, message: bytes) -> None:
        kind, body = int.from_bytes(message[:4], "big"), message[4:]
        if kind == TEXT:
            # Texts go to every client; while a node of this prompt runs, no other prompt's does.
            node, text = _split(body)
            if self._display(node.decode(errors="replace")) == self._node:
                self.emit("text", self._node, text=text.decode(errors="replace"))
        elif kind == PREVIEW:
            self.emit("preview", self._node, picture=body[4:])
        elif kind == PREVIEW_WITH_METADATA:
            head, picture = _split(body)
            about = _object(head)
            if about.get("prompt_id", self.prompt_id) == self.prompt_id:
                self.emit("preview", self._display(str(about.get("node_id", self._node))), picture=picture)


def _object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else, which no ComfyUI sends but what stands before one may."""
    with suppress(ValueError):
        found = parse_json(text.decode() if isinstance(text, bytes) else text)
        return found if isinstance(found, dict) else {}
    return {}


def _split(body: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack(">I", body[:4])[0] if len(body) >= 4 else 0
    return body[4 : 4 + length], body[4 + length :]


def check(entry: Mapping[str, Any], monitor: RunMonitor) -> None:
    """RunFailedError unless history and the messages say that all went well."""
    status = entry.get("status") or {}
    messages = {str(event): data for event, data in status.get("messages") or []}
    if "execution_interrupted" in messages:
        node = str(messages["execution_interrupted"].get("node_id", ""))
        name = title(monitor.prompt, node)
        raise RunFailedError(f"The run was interrupted on the server, at {name}.", node=node, title=name)
    failure = messages.get("execution_error") or monitor.failure
    if failure is not None:
        raise _failed(monitor.prompt, failure)
    if status.get("status_str") == "error":
        raise RunFailedError("The run ended with an error that the server does not explain; see its log.")


def _failed(prompt: Prompt, data: Mapping[str, Any]) -> RunFailedError:
    node = str(data.get("node_id", ""))
    name, kind = title(prompt, node), str(data.get("exception_type", "")).rsplit(".", 1)[-1]
    message = " ".join(str(data.get("exception_message", "")).split())
    is_plain = message and kind in ("UserError", "ExecutionBlocked")
    text = message if is_plain else ": ".join(filter(None, (kind, message)))
    details = "".join(map(str, data.get("traceback") or []))
    return RunFailedError(f"{name} (node {node}): {text}", node=node, title=name, details=details)


@dataclass(frozen=True)
class Output:
    """A file that the run left on the server: what /view is asked for, and which node shows it."""

    node: str
    title: str
    filename: str
    subfolder: str = ""
    type: str = "output"


def collect(entry: Mapping[str, Any], prompt: Prompt, output_kinds: set[str]) -> tuple[list[Output], dict[str, Any]]:
    """Files of output nodes, and the rest of what they return: {node: {"text": […], "latentsync_score": […]}}.
    output_kinds: classes of output nodes. A file in the output folder counts whichever node shows it."""
    files: dict[tuple[str, str, str], Output] = {}
    values: dict[str, Any] = {}
    for node, shown in entry.get("outputs", {}).items():
        own, result = prompt.get(str(node)), isinstance(shown, Mapping)
        is_output = own is not None and own["class_type"] in output_kinds
        for key, items in shown.items() if result else ():
            found = list(_files(items, str(node), title(prompt, str(node))))
            kept = [one for one in found if one.type == "output" or (is_output and one.type == "temp")]
            files |= {(one.type, one.subfolder, one.filename): one for one in kept}
            # text or data, not flags such as SaveVideo's "animated"
            is_content = isinstance(items, list) and any(isinstance(one, str | Mapping) for one in items)
            if is_output and not found and is_content:
                values.setdefault(str(node), {})[key] = items
    return list(files.values()), values


def _files(items: Any, node: str, name: str) -> Iterator[Output]:
    """{filename, subfolder, type} wherever it stands: every node has its own key for it, some nest it."""
    if isinstance(items, list):
        for one in items:
            yield from _files(one, node, name)
    elif isinstance(items, Mapping):
        if isinstance(items.get("filename"), str) and items["filename"]:
            folder, kind = str(items.get("subfolder") or ""), str(items.get("type") or "output")
            yield Output(node, name, items["filename"], folder, kind)
        else:
            yield from _files(list(items.values()), node, name)
