"""Workflows in API form: reading one, finding a node by its name, setting a value that fits. No network here.

A prompt is what ComfyUI's queue takes: {id: {"class_type": …, "inputs": {name: value}, "_meta": {"title": …}}}. A wire
is a value too: [id of the other node, number of its output].
"""

import copy
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json
from .inputs import DYNAMIC, GROWING, MANY, SLOT, Field, Inputs, can_be_set, default, fit, fits, lacking, present
from .inputs import declared as inputs_of

Prompt = dict[str, dict[str, Any]]
Info = Mapping[str, Mapping[str, Any]]
"""What GET /object_info says of each class of nodes."""

EXPORT = (
    "open it in ComfyUI and choose Export (API) in the workflow menu (older versions: Save (API Format), once the"
    " developer mode is on in the settings)"
)
LONG = 200  # characters of a value that a list shows


def read(source: str | Path | Mapping[str, Any]) -> Prompt:
    """A workflow from a file or a dict, checked for its form; the caller's own dict is not changed."""
    name, found = ("The workflow", source) if isinstance(source, Mapping) else (str(source), _parse(Path(source)))
    if isinstance(found, Mapping) and isinstance(found.get("prompt"), Mapping) and "class_type" not in found["prompt"]:
        found = found["prompt"]
    if isinstance(found, Mapping) and isinstance(found.get("nodes"), list):
        raise UserError(f"{name} is a workflow as the editor saves it; the queue needs the API form: {EXPORT}.")
    if not isinstance(found, Mapping) or not found or not all(map(_is_node, found.values())):
        raise UserError(f"{name} is not a workflow in API form; to get one, {EXPORT}.")
    return {str(key): {"inputs": {}} | copy.deepcopy(dict(node)) for key, node in found.items()}


def _parse(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), strict=True)
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror}); give a workflow file (.json).") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give a workflow in API form: {EXPORT}.") from error


def _is_node(node: Any) -> bool:
    is_mapping = isinstance(node, Mapping) and isinstance(node.get("inputs", {}), Mapping)
    return is_mapping and isinstance(node.get("class_type"), str)


def title(prompt: Mapping[str, Any], node: str) -> str:
    """A node's title, else its class. A node made by expansion goes by its parent."""
    own = prompt.get(node) or prompt.get(node.split(".")[0])
    if own is None:
        return f"node {node}"
    name = own.get("_meta", {}).get("title") if isinstance(own.get("_meta", {}), Mapping) else None
    return str(name or own["class_type"])


def locate(prompt: Prompt, info: Info, address: str) -> Field:
    """The input that "NODE.INPUT" means. NODE is an id, a title, or a class that occurs once; both may hold dots. An
    input inside another one ("format.codec") may be named by its last part alone where that means one."""
    splits = [(address[:at], address[at + 1 :]) for at, sign in enumerate(address) if sign == "."]
    for node, name in reversed(splits):
        found = _named(prompt, node)
        if len(found) > 1:
            raise UserError(f"{node} may be any of {_list_nodes(prompt, found)}; name one by its id.")
        if found:
            return _field(prompt, info, found[0], name)
    wanted = splits[-1][0] if splits else address
    hint = _did_you_mean(wanted, [title(prompt, node) for node in prompt])
    say = f"There is no node {wanted} in the workflow" if splits else f"{address} does not name NODE.INPUT"
    raise UserError(f"{say}; it has {_list_nodes(prompt, list(prompt))}.{hint}")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _named(prompt: Prompt, name: str) -> list[str]:
    if name in prompt:
        return [name]
    return (
        [node for node in prompt if title(prompt, node) == name]
        or [node for node in prompt if title(prompt, node).casefold() == name.casefold()]
        or [node for node in prompt if prompt[node]["class_type"] == name]
    )


def _list_nodes(prompt: Prompt, nodes: Sequence[str]) -> str:
    shown = [f"{node} ({title(prompt, node)})" for node in nodes[:MANY]]
    return ", ".join(shown) + (f" and {len(nodes) - MANY} more" if len(nodes) > MANY else "")


class AbsentError(UserError):
    """The node has no such input, or not with what is chosen now."""


def _field(prompt: Prompt, info: Info, node: str, name: str) -> Field:
    label, own = title(prompt, node), prompt[node]
    inputs = info.get(own["class_type"], {}).get("input", {})
    known = {one.name: one for one in present(inputs, own["inputs"])}
    found = known.get(name)
    if found is None or found.rules.get("hidden"):
        inside = [one for path, one in known.items() if path.endswith(f".{name}") and not one.rules.get("hidden")]
        found = inside[0] if len(inside) == 1 else found
    if found is not None:
        return found.field(node, label)
    if name in own["inputs"] or own["class_type"] not in info:
        return Field(node, name, label, "", {})
    raise AbsentError(_not_there(name, label, inputs, own["inputs"]))


def _not_there(name: str, label: str, inputs: Inputs, own: Mapping[str, Any]) -> str:
    if (found := lacking(name, inputs, own)) is not None:
        path, choices = found
        needs = " and ".join(f"{combo} is {' or '.join(keys)}" for combo, keys in choices.items())
        return f"{path} of {label} exists only when {needs}; set that too."
    names = [one.name for one in present(inputs, own) if not one.rules.get("hidden")]
    # of a row that grows, only what is in use
    rows = tuple(f"{one.name}." for one in present(inputs, own) if one.kind == GROWING)
    shown = [one for one in names if not one.startswith(rows) or one in own]
    return f"{label} has no input {name}; it has {', '.join(shown) or 'none'}.{_did_you_mean(name, names)}"


def declared(info: Info, kind: str) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """{input: (its kind, its rules)} of a class of nodes; empty for one that the server does not have."""
    return {one.name: (one.kind, one.rules) for one in inputs_of(info.get(kind, {}).get("input", {}))}


def settable(prompt: Prompt, info: Info) -> list[Field]:
    """The inputs of all nodes that a value can be given to, as things stand."""
    found = []
    for node, own in prompt.items():
        inputs = info.get(own["class_type"], {}).get("input", {})
        rows = tuple(f"{one.name}." for one in present(inputs, own["inputs"]) if one.kind == GROWING)
        for one in present(inputs, own["inputs"]):
            field = one.field(node, title(prompt, node))
            absent = bool(one.rules.get("hidden")) or (one.name.startswith(rows) and one.name not in own["inputs"])
            if not absent and can_be_set(field) and _takes_value(prompt, field):
                found.append(field)
    return found


def shown_value(prompt: Prompt, field: Field) -> str:
    """What an input holds, as --set takes it; where a wire goes to; nothing where the node's own default stands."""
    value = prompt[field.node]["inputs"].get(field.name)
    if _is_link(prompt, value):
        return f"(wired to {title(prompt, str(value[0]))})"
    value = value.get("__value__", value) if isinstance(value, Mapping) else value
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (text if len(text) <= LONG else f"{text[:LONG]}…").replace("\n", " ")


def put_all(prompt: Prompt, info: Info, values: Mapping[str, Any]) -> dict[str, Field]:
    """Set inputs, {"NODE.INPUT": value}, in any order: a choice comes before what it brings along."""
    fields: dict[str, Field] = {}
    left = dict(values)
    while left:
        found: dict[str, Field] = {}
        for place in left:
            with suppress(AbsentError):
                found[place] = locate(prompt, info, place)
        if not found:
            locate(prompt, info, next(iter(left)))  # says what is wrong
        place = min(found, key=lambda one: found[one].name.count("."))
        fields[place] = found[place]
        put(prompt, found[place], left.pop(place))
    return fields


def put(prompt: Prompt, field: Field, value: Any) -> None:
    """Set an input to a value that fits it (text is read as the input needs it); UserError says what would fit."""
    inputs = prompt[field.node]["inputs"]
    if not _takes_value(prompt, field):
        now = inputs.get(field.name)
        wired = f", wired to {title(prompt, str(now[0]))}" if now else ""
        raise UserError(f"{field.name} of {field.label} is a socket for {field.takes}{wired}; it takes no value.")
    inputs[field.name] = _sent(fit(field, value))
    if field.kind == DYNAMIC:
        # its inputs keep what fits them and else get what a new node has; those of other choices go
        kept = set(_complete(inputs, field))
        for name in [name for name in inputs if name.startswith(f"{field.name}.") and name not in kept]:
            del inputs[name]


def _takes_value(prompt: Prompt, field: Field) -> bool:
    """A kind that we do not know is a socket, unless the workflow has a value there: then it is some pack's widget."""
    now = prompt[field.node]["inputs"].get(field.name)
    return not field.is_socket or not (now is None or _is_link(prompt, now))


def _sent(value: Any) -> Any:
    """A list alone would be taken for a wire."""
    return {"__value__": value} if isinstance(value, list) else value


def _is_link(prompt: Prompt, value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt


def _complete(own: dict[str, Any], combo: Field) -> Iterator[str]:
    """Names of all inputs that the choice brings along, filled in."""
    chosen = next(option for option in combo.rules["options"] if option["key"] == own[combo.name])
    for one in inputs_of(chosen["inputs"], f"{combo.name}."):
        yield one.name
        field, now = one.field(combo.node, combo.label), own.get(one.name)
        if one.kind in (GROWING, SLOT):
            yield from [name for name in own if name.startswith(f"{one.name}.")]
        elif not isinstance(now, list) and not field.is_socket and (now is not None or one.required):
            # a workflow from before there were inputs inside others has this one outside
            had = now if now is not None else own.get(one.name.rsplit(".", 1)[-1])
            had = had.get("__value__", had) if isinstance(had, Mapping) else had
            value = had if had is not None and fits(field, had) else default(field)
            own |= {} if value is None else {one.name: _sent(value)}
        if field.kind == DYNAMIC and one.name in own:
            yield from _complete(own, field)


def missing(prompt: Prompt, info: Info) -> list[str]:
    """A line for each node whose class the server does not have."""
    return [
        f"{title(prompt, node)} (node {node}): no {own['class_type']} on this server; install the pack that has it."
        for node, own in prompt.items()
        if own["class_type"] not in info
    ]


def refusals(prompt: Prompt, info: Info, answer: Mapping[str, Any]) -> list[str]:
    """What the server found wrong with a prompt, a line each, with the nodes' titles."""
    lines = []
    for node, report in (answer.get("node_errors") or {}).items():
        label = title(prompt, str(node))
        for error in report.get("errors", []):
            name = (error.get("extra_info") or {}).get("input_name")
            hint = (
                f'; send one with --input "{label}.{name}=FILE"' if _takes_file(prompt, info, str(node), name) else ""
            )
            lines.append(f"{label} (node {node}): {_sentence(error)}{hint}")
    return lines or [_sentence(answer.get("error")) or "the server gives no reason"]


def _takes_file(prompt: Prompt, info: Info, node: str, name: str | None) -> bool:
    try:
        return name is not None and node in prompt and _field(prompt, info, node, name).is_upload
    except AbsentError:
        return False


def _sentence(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error or "").strip()
    return ": ".join(str(part).strip() for part in (error.get("message"), error.get("details")) if part)
