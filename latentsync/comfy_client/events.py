"""What one prompt does on a ComfyUI server, told by its websocket and its history. No network here."""

import json
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .prompt import Prompt, title

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4
"""ComfyUI's kinds of binary messages."""


@dataclass(frozen=True)
class Event:
    """Something that happened: uploading, queued, started, cached, node, progress, text, preview, lost, found, done.

    node and title say where; done of total how far (for queued: done prompts are ahead); text is the stage in the
    node's own words, or a file's name; picture is a JPEG or PNG.
    """

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


class Watch:
    """Listens to one prompt: tells events, measures nodes, notices the end."""

    def __init__(self, prompt: Prompt, prompt_id: str, on_event: OnEvent | None) -> None:
        self.prompt, self.prompt_id, self._tell = prompt, prompt_id, on_event
        self.seconds: dict[str, float] = defaultdict(float)
        self.outputs: dict[str, Any] = {}
        self.cached: list[str] = []
        self.failure: Mapping[str, Any] | None = None
        self.succeeded = False
        self.ending = False
        """The last word was said or is about to be: history will have the result in a moment."""
        self.over = False
        """Nothing more will be said of this prompt."""
        self._names: dict[str, str] = {}
        self._node, self._since = "", time.perf_counter()

    def tell(self, kind: str, node: str = "", **rest: Any) -> None:
        if self._tell is not None:
            self._tell(Event(kind, node, title(self.prompt, node) if node else "", **rest))

    def hear(self, message: str | bytes) -> None:
        """One message of the socket; those of other prompts and unknown ones are left alone."""
        if isinstance(message, bytes):
            self._hear_bytes(message)
            return
        said = json.loads(message)
        data = said.get("data")
        known = getattr(self, f"_on_{said.get('type')}", None)
        if known is not None and isinstance(data, Mapping) and data.get("prompt_id") == self.prompt_id:
            known(data)

    def _on_execution_start(self, _: Mapping[str, Any]) -> None:
        self.tell("started")

    def _on_execution_cached(self, data: Mapping[str, Any]) -> None:
        self.cached = [str(node) for node in data.get("nodes", []) if str(node) in self.prompt]
        self.tell("cached", done=len(self.cached), total=len(self.prompt))

    def _on_executing(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        shown = "" if node is None else self._display(str(node), data.get("display_node"))
        if shown != self._node:
            self._close()
            self._node = shown
            if shown:
                self.tell("node", shown)
        if node is None:
            self.ending = self.over = True

    def _on_progress(self, data: Mapping[str, Any]) -> None:
        node = self._display(str(data.get("node")))
        self.tell("progress", node, done=data.get("value", 0), total=data.get("max", 0))

    def _on_progress_state(self, data: Mapping[str, Any]) -> None:
        for node, state in data.get("nodes", {}).items():
            self._display(str(node), state.get("display_node_id"))

    def _on_executed(self, data: Mapping[str, Any]) -> None:
        self.outputs[str(data.get("node"))] = data.get("output") or {}

    def _on_execution_error(self, data: Mapping[str, Any]) -> None:
        # ExecutionBlocker tells of itself this way while the rest goes on; history does not remember it.
        self.failure, self.ending = data, data.get("exception_type") != "ExecutionBlocked"

    def _on_execution_interrupted(self, _: Mapping[str, Any]) -> None:
        self.ending = True

    def _on_execution_success(self, _: Mapping[str, Any]) -> None:
        self.succeeded = self.ending = True

    def _display(self, node: str, known: Any = None) -> str:
        """The node that a person sees: an expanded one stands in the node that it came from."""
        if known is not None:
            self._names[node] = str(known)
        shown = self._names.get(node, node)
        return shown if shown in self.prompt else shown.split(".")[0]

    def _close(self) -> None:
        now = time.perf_counter()
        if self._node:
            self.seconds[self._node] += now - self._since
        self._since = now

    def _hear_bytes(self, message: bytes) -> None:
        kind, body = int.from_bytes(message[:4], "big"), message[4:]
        if kind == TEXT:
            # Texts go to everybody; while a node of ours runs, nobody else's does.
            node, text = _split(body)
            if self._display(node.decode(errors="replace")) == self._node:
                self.tell("text", self._node, text=text.decode(errors="replace"))
        elif kind == PREVIEW:
            self.tell("preview", self._node, picture=body[4:])
        elif kind == PREVIEW_WITH_METADATA:
            self._preview(*_split(body))

    def _preview(self, head: bytes, picture: bytes) -> None:
        about = json.loads(head)
        if about.get("prompt_id", self.prompt_id) == self.prompt_id:
            self.tell("preview", self._display(str(about.get("node_id", self._node))), picture=picture)


def _split(body: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack(">I", body[:4])[0] if len(body) >= 4 else 0
    return body[4 : 4 + length], body[4 + length :]


def check(entry: Mapping[str, Any], watch: Watch) -> None:
    """RunFailedError unless history (and what was heard) say that all went well."""
    status = entry.get("status") or {}
    heard = {str(event): data for event, data in status.get("messages") or []}
    if "execution_interrupted" in heard:
        node = str(heard["execution_interrupted"].get("node_id", ""))
        name = title(watch.prompt, node)
        raise RunFailedError(f"The run was interrupted on the server, at {name}.", node=node, title=name)
    failure = heard.get("execution_error") or watch.failure
    if failure is not None:
        raise _failed(watch.prompt, failure)
    if status.get("status_str") == "error":
        raise RunFailedError("The run ended with an error that the server does not explain; see its log.")


def _failed(prompt: Prompt, data: Mapping[str, Any]) -> RunFailedError:
    node = str(data.get("node_id", ""))
    name, kind = title(prompt, node), str(data.get("exception_type", "")).rsplit(".", 1)[-1]
    said = " ".join(str(data.get("exception_message", "")).split())
    text = said if said and kind in ("UserError", "ExecutionBlocked") else ": ".join(filter(None, (kind, said)))
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


def collect(
    entry: Mapping[str, Any], prompt: Prompt, is_output: Callable[[str], bool]
) -> tuple[list[Output], dict[str, Any]]:
    """The files that output nodes show, and what else they say: {node: {"text": […], "latentsync_score": […]}}.

    A file in the output folder counts whoever shows it: that is where results are kept.
    """
    files: dict[tuple[str, str, str], Output] = {}
    values: dict[str, Any] = {}
    for node, shown in entry.get("outputs", {}).items():
        own, result = prompt.get(str(node)), isinstance(shown, Mapping)
        ends = own is not None and is_output(own["class_type"])
        for key, items in shown.items() if result else ():
            found = list(_files(items, str(node), title(prompt, str(node))))
            kept = [one for one in found if one.type == "output" or (ends and one.type == "temp")]
            files |= {(one.type, one.subfolder, one.filename): one for one in kept}
            if ends and not found and _says(items):
                values.setdefault(str(node), {})[key] = items
    return list(files.values()), values


def _files(items: Any, node: str, name: str) -> Iterator[Output]:
    """{filename, subfolder, type} wherever it stands: every node has its own key for it, some nest it."""
    if isinstance(items, list):
        for one in items:
            yield from _files(one, node, name)
    elif isinstance(items, Mapping):
        if isinstance(items.get("filename"), str) and items["filename"]:
            yield Output(
                node, name, items["filename"], str(items.get("subfolder") or ""), str(items.get("type") or "output")
            )
        else:
            for one in items.values():
                yield from _files(one, node, name)


def _says(items: Any) -> bool:
    """Text or data, not flags such as SaveVideo's "animated"."""
    return isinstance(items, list) and any(isinstance(one, str | Mapping) for one in items)
