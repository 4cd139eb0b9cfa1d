"""Workflows in API form: reading one, finding a node by its name, setting a value that fits. No network here.

A prompt is what ComfyUI's queue takes: {id: {"class_type": …, "inputs": {name: value}, "_meta": {"title": …}}}. A wire
is a value too: [id of the other node, number of its output].
"""

import copy
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError

Prompt = dict[str, dict[str, Any]]
Info = Mapping[str, Mapping[str, Any]]
"""What GET /object_info says of each class of nodes."""

EXPORT = (
    "open it in ComfyUI and choose Export (API) in the workflow menu (older versions: Save (API Format), once the"
    " developer mode is on in the settings)"
)
MANY = 12
"""More than so many choices are not listed."""


def read(source: str | Path | Mapping[str, Any]) -> Prompt:
    """A workflow from a file or a dict, checked for its form; the caller's own dict is not changed."""
    name, found = ("The workflow", source) if isinstance(source, Mapping) else (str(source), _parse(Path(source)))
    if isinstance(found, Mapping) and isinstance(found.get("prompt"), Mapping) and "class_type" not in found["prompt"]:
        found = found["prompt"]
    if isinstance(found, Mapping) and isinstance(found.get("nodes"), list):
        raise UserError(f"{name} is a workflow as the editor saves it; the queue needs the API form: {EXPORT}.")
    if not isinstance(found, Mapping) or not found or not all(map(_is_node, found.values())):
        raise UserError(f"{name} holds no workflow in API form; to get one, {EXPORT}.")
    return {str(key): {"inputs": {}} | copy.deepcopy(dict(node)) for key, node in found.items()}


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror}); give a workflow file (.json).") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); give a workflow in API form: {EXPORT}.") from error


def _is_node(node: Any) -> bool:
    inputs = node.get("inputs", {}) if isinstance(node, Mapping) else None
    return isinstance(inputs, Mapping) and isinstance(node.get("class_type"), str)


def title(prompt: Mapping[str, Any], node: str) -> str:
    """What a person calls the node: its title, else its class. A node made by expansion is known by its parent."""
    own = prompt.get(node) or prompt.get(node.split(".")[0])
    if own is None:
        return f"node {node}"
    said = own.get("_meta", {}).get("title") if isinstance(own.get("_meta", {}), Mapping) else None
    return str(said or own["class_type"])


@dataclass(frozen=True)
class Field:
    """One input of one node. kind: INT, FLOAT, BOOLEAN, STRING, COMBO or a socket's name; "" where nobody says."""

    node: str
    name: str
    label: str
    kind: str
    rules: Mapping[str, Any]
    choices: Sequence[Any] | None = None

    @property
    def is_upload(self) -> bool:
        """A list of files that grows by uploading; the server knows better than the list which ones there are."""
        return any(key.endswith("_upload") and value for key, value in self.rules.items())

    @property
    def is_socket(self) -> bool:
        return bool(self.kind) and self.kind != "*" and not WIDGETS & set(self.kind.split(","))


WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"}


def locate(prompt: Prompt, info: Info, address: str) -> Field:
    """The input that "NODE.INPUT" means. NODE is an id, a title, or a class that occurs once; both may hold dots."""
    splits = [(address[:at], address[at + 1 :]) for at, sign in enumerate(address) if sign == "."]
    for node, name in reversed(splits):
        found = _named(prompt, node)
        if len(found) > 1:
            raise UserError(f"{node} may be any of {_list_nodes(prompt, found)}; name one by its id.")
        if found:
            return _field(prompt, info, found[0], name)
    wanted = splits[-1][0] if splits else address
    near = difflib.get_close_matches(wanted, [title(prompt, node) for node in prompt], 1, 0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    say = f"There is no node {wanted} in the workflow" if splits else f"{address} does not name NODE.INPUT"
    raise UserError(f"{say}; it has {_list_nodes(prompt, list(prompt))}.{hint}")


def _named(prompt: Prompt, name: str) -> list[str]:
    if name in prompt:
        return [name]
    titles = {node: title(prompt, node) for node in prompt}
    tries = (
        [node for node, said in titles.items() if said == name],
        [node for node, said in titles.items() if said.casefold() == name.casefold()],
        [node for node in prompt if prompt[node]["class_type"] == name],
    )
    return next(filter(None, tries), [])


def _list_nodes(prompt: Prompt, nodes: Sequence[str]) -> str:
    shown = [f"{node} ({title(prompt, node)})" for node in nodes[:MANY]]
    return ", ".join(shown) + (f" and {len(nodes) - MANY} more" if len(nodes) > MANY else "")


def _field(prompt: Prompt, info: Info, node: str, name: str) -> Field:
    label, own = title(prompt, node), prompt[node]
    known = declared(info, own["class_type"])
    if name not in known and name not in own["inputs"] and own["class_type"] in info:
        near = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{label} has no input {name}; it has {', '.join(known) or 'none'}.{hint}")
    kind, rules = known.get(name, ("", {}))
    if isinstance(kind, list):
        return Field(node, name, label, "COMBO", rules, kind)
    choices = rules.get("options") if kind == "COMBO" else None
    return Field(node, name, label, str(kind), rules, choices if isinstance(choices, list) else None)


def declared(info: Info, kind: str) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """{input: (its kind, its rules)} of a class of nodes; empty for one that the server does not have."""
    inputs = info.get(kind, {}).get("input", {})
    both = {**inputs.get("required", {}), **inputs.get("optional", {})}
    return {
        name: (said[0], said[1] if len(said) > 1 and isinstance(said[1], Mapping) else {})
        for name, said in both.items()
    }


def put(prompt: Prompt, field: Field, value: Any) -> None:
    """Set an input to a value that fits it (text is read as the input needs it); UserError says what would fit."""
    inputs = prompt[field.node]["inputs"]
    now = inputs.get(field.name)
    if field.is_socket and (now is None or _is_link(prompt, now)):
        wired = f", wired to {title(prompt, str(now[0]))}" if now else ""
        raise UserError(f"{field.name} of {field.label} is a socket for {field.kind}{wired}; it takes no value.")
    fitted = _fit(field, value)
    inputs[field.name] = {"__value__": fitted} if isinstance(fitted, list) else fitted


def _is_link(prompt: Prompt, value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt


def _fit(field: Field, value: Any) -> Any:
    if field.kind == "STRING":
        return _as_text(value)
    if field.kind == "COMBO":
        return _choose(field, value)
    parsed = from_text(value)
    if field.kind == "BOOLEAN" and not isinstance(parsed, bool):
        raise UserError(f"{field.name} of {field.label} is {_shown(value)}; it must be true or false.")
    return _number(field, value, parsed) if field.kind in ("INT", "FLOAT") else parsed


def from_text(value: Any) -> Any:
    """Text as JSON where it is JSON (5, true, "quoted", [1, 2]), else as it stands; what is no text stays itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=str)
    except ValueError:
        return value


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    parsed = from_text(value) if value.startswith('"') else value
    return parsed if isinstance(parsed, str) else value


def _number(field: Field, value: Any, parsed: Any) -> int | float:
    whole = field.kind == "INT"
    if whole and isinstance(parsed, float) and parsed.is_integer():
        parsed = int(parsed)
    good = isinstance(parsed, int if whole else (int, float)) and not isinstance(parsed, bool)
    low, high = field.rules.get("min", -math.inf), field.rules.get("max", math.inf)
    if not good or not low <= parsed <= high:
        span = "" if math.isinf(low) and math.isinf(high) else f" from {low} to {high}"
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{field.name} of {field.label} is {_shown(value)}; it must be {kind}{span}.")
    return parsed


def _choose(field: Field, value: Any) -> Any:
    free = field.choices is None or field.is_upload or "remote" in field.rules or field.rules.get("multiselect")
    parsed = from_text(value)
    if free:
        return parsed if isinstance(parsed, list) else _as_text(value)
    choices = field.choices or []
    for one in (value, parsed, _as_text(value)):
        if any(one == choice and type(one) is type(choice) for choice in choices):
            return one
    raise UserError(f"{field.name} of {field.label} is {_shown(value)}; {_list_choices(choices, str(value))}.")


def _list_choices(choices: Sequence[Any], wanted: str) -> str:
    if not choices:
        return "the server has nothing to choose from there"
    if len(choices) <= MANY:
        return f"it must be one of {', '.join(map(str, choices))}"
    near = difflib.get_close_matches(wanted, list(map(str, choices)), 3, 0.3) or list(map(str, choices[:3]))
    return f"it must be one of the {len(choices)} that the server knows, such as {', '.join(near)}"


def _shown(value: Any) -> str:
    said = str(value)
    return f'"{said[:60]}…"' if len(said) > 60 else f'"{said}"'


def missing(prompt: Prompt, info: Info) -> list[str]:
    """A line for each node whose class the server does not have."""
    return [
        f"{title(prompt, node)} (node {node}): no {own['class_type']} on this server; install the pack that has it."
        for node, own in prompt.items()
        if own["class_type"] not in info
    ]


def refusals(prompt: Prompt, info: Info, answer: Mapping[str, Any]) -> list[str]:
    """What the server found wrong with a prompt, a line each, in the words of the nodes' titles."""
    lines = []
    for node, said in (answer.get("node_errors") or {}).items():
        label = title(prompt, str(node))
        for error in said.get("errors", []):
            name = (error.get("extra_info") or {}).get("input_name")
            field = _field(prompt, info, str(node), name) if name and node in prompt else None
            hint = f'; send one by --input "{label}.{name}=FILE"' if field is not None and field.is_upload else ""
            lines.append(f"{label} (node {node}): {sentence(error)}{hint}")
    return lines or [sentence(answer.get("error")) or "the server gives no reason"]


def sentence(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error or "").strip()
    said: Iterable[Any] = (error.get("message"), error.get("details"))
    return ": ".join(str(part).strip() for part in said if part)
