"""What the inputs of ComfyUI's nodes take: kinds, ranges, choices, and the inputs that a choice brings along.

A name with dots is an input inside another one: "format.codec" exists when the chosen format has a codec.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import parse_json

MANY = 12  # more than so many choices are not listed
DYNAMIC, GROWING, SLOT, MATCHED = (
    "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3", "COMFY_DYNAMICSLOT_V3", "COMFY_MATCHTYPE_V3",
)  # fmt: skip
"""A list whose choices have inputs of their own; a row of inputs that grows; a socket that has more inputs once it is
wired; a socket that takes what its node's other sockets take."""
TYPED = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"}
FILES = {"WEBCAM", "AUDIO_RECORD"}  # recordings of the browser, which it uploads: a node of these reads any file
BROWSER = {
    "LOAD_3D", "LOAD_3D_ADVANCED", "LOAD_3D_ANIMATION", "PREVIEW_3D", "PREVIEW_3D_ANIMATION",
    "IMAGECOMPARE", "IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI",
}  # fmt: skip
"""Only the browser can fill these, or they only show something."""

Rules = Mapping[str, Any]
Inputs = Mapping[str, Any]
"""{"required": {name: [kind, rules]}, "optional": …}, as /object_info has it."""
Choices = Mapping[str, list[str]]
"""The choices that bring an input along: {"format": ["mp4", "mkv"]}."""


@dataclass(frozen=True)
class Field:
    """One input of one node. kind: a widget's or a socket's name; "" where nobody says."""

    node: str
    name: str
    label: str
    kind: str
    rules: Rules
    choices: Sequence[Any] | None = None

    @property
    def is_upload(self) -> bool:
        """A file that may be uploaded; the server knows better than a list which ones there are."""
        return self.kind in FILES or any(key.endswith("_upload") and value for key, value in self.rules.items())

    @property
    def is_socket(self) -> bool:
        kinds = set(self.kind.split(","))
        if self.kind in ("", "*", DYNAMIC, GROWING) or kinds & (TYPED | FILES | BROWSER):
            return False
        is_widget = self.kind in DRAWN or bool(self.rules.get("socketless"))
        return not is_widget or bool(self.rules.get("forceInput"))

    @property
    def takes(self) -> str:
        """The sockets that fit, in words."""
        kinds = self.rules.get("template", {}).get("allowed_types", self.kind) if self.kind == MATCHED else self.kind
        return "anything" if kinds == "*" else kinds.replace(",", " or ")


class Declared(NamedTuple):
    name: str
    kind: Any
    rules: Rules
    required: bool

    def field(self, node: str, label: str) -> Field:
        if isinstance(self.kind, list):
            return Field(node, self.name, label, "COMBO", self.rules, self.kind)
        shown = self.rules.get("widgetType")
        kind = shown if shown in TYPED | set(DRAWN) else str(self.kind)
        options = self.rules.get("options")
        if kind == DYNAMIC:
            return Field(node, self.name, label, kind, self.rules, [option["key"] for option in options or []])
        return Field(node, self.name, label, kind, self.rules, options if isinstance(options, list) else None)


def declared(inputs: Inputs, prefix: str = "") -> Iterator[Declared]:
    """The inputs of one level."""
    for section in ("required", "optional"):
        for name, spec in (inputs.get(section) or {}).items():
            rules = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
            yield Declared(prefix + name, spec[0], rules, section == "required")


def present(inputs: Inputs, own: Mapping[str, Any], prefix: str = "") -> Iterator[Declared]:
    """The inputs that a node has now. own: its values; what they choose decides which inputs there are."""
    for one in declared(inputs, prefix):
        yield one._replace(kind=one.rules.get("slotType", SLOT)) if one.kind == SLOT else one
        if one.kind == GROWING:
            yield from _row(one)
        elif one.kind == SLOT and one.name in own:
            yield from present(one.rules.get("inputs") or {}, own, one.name + ".")
        elif one.kind == DYNAMIC:
            chosen = own.get(one.name, first_choice(one.rules))
            inner = [option["inputs"] for option in one.rules.get("options", []) if option["key"] == chosen]
            yield from present(inner[0] if inner else {}, own, one.name + ".")


def first_choice(rules: Rules) -> Any:
    """What the editor shows first."""
    keys = [option["key"] for option in rules.get("options", [])]
    return rules["default"] if rules.get("default") in keys else next(iter(keys), None)


def _row(one: Declared) -> Iterator[Declared]:
    template = one.rules.get("template", {})
    if (of := next(declared(template.get("input", {})), None)) is None:
        return
    for number, name in enumerate(row_names(one.rules)):
        yield of._replace(name=f"{one.name}.{name}", required=of.required and number < template.get("min", 0))


def row_names(rules: Rules) -> list[str]:
    template = rules.get("template", {})
    numbered = [f"{template.get('prefix', '')}{number}" for number in range(template.get("max", 0))]
    return list(template.get("names", numbered))


def possible(inputs: Inputs, prefix: str = "", chosen: tuple[tuple[str, str], ...] = ()) -> Iterator[tuple[str, tuple]]:
    """Every input that there can be inside another one, with the choices that bring it along."""
    for one in declared(inputs, prefix):
        if chosen:
            yield one.name, chosen
        for option in one.rules.get("options", []) if one.kind == DYNAMIC else []:
            yield from possible(option["inputs"], one.name + ".", (*chosen, (one.name, option["key"])))


def lacking(name: str, inputs: Inputs, own: Mapping[str, Any]) -> tuple[str, Choices] | None:
    """For an input that other choices would bring along: its full name and the choices that are nearest."""
    now = {one.name: own.get(one.name, first_choice(one.rules)) for one in present(inputs, own) if one.kind == DYNAMIC}
    found = [(path, chosen) for path, chosen in possible(inputs) if name in (path, path.rsplit(".", 1)[-1])]
    ways = [(path, [(combo, key) for combo, key in chosen if now.get(combo) != key]) for path, chosen in found]
    if not ways:
        return None
    path, fewest = min(ways, key=lambda way: len(way[1]))
    choices: dict[str, dict[str, None]] = {}  # the inner one as an ordered set
    for combo, key in (pair for way, unmet in ways if way == path and len(unmet) == len(fewest) for pair in unmet):
        choices.setdefault(combo, {})[key] = None
    return path, {combo: list(keys) for combo, keys in choices.items()}


# Values


def fit(field: Field, value: Any) -> Any:
    """The value as the input needs it (text is read); UserError says what would fit."""
    if field.kind == GROWING:
        names = [f"{field.name}.{name}" for name in row_names(field.rules)]
        shown = ", ".join(names[:2]) + (f" to {names[-1]}" if len(names) > 2 else "")
        raise UserError(f"{field.name} of {field.label} is a row of inputs; name one of them ({shown}).")
    if not can_be_set(field):
        raise UserError(
            f"{field.name} of {field.label} is {field.kind}, which cannot be set from here; set it in ComfyUI and"
            " export the workflow again."
        )
    if field.kind == "STRING" or field.kind in FILES:
        return as_text(value)
    if field.kind in ("COMBO", DYNAMIC):
        return _choose(field, value)
    parsed = from_text(value)
    if field.kind == "INT" and isinstance(parsed, float) and parsed.is_integer():
        parsed = int(parsed)
    check, _ = CHECKS.get(field.kind, (None, ""))
    if check and not (check(parsed) and _is_within(field.rules, parsed)):
        raise UserError(f"{field.name} of {field.label} is {_shown(value)}; it must be {_expected(field)}.")
    return parsed


def can_be_set(field: Field) -> bool:
    """Whether there is a value that can be written down."""
    return field.kind not in BROWSER and (field.kind == DYNAMIC or not field.kind.startswith("COMFY_"))


def fits(field: Field, value: Any) -> bool:
    try:
        fit(field, value)
    except UserError:
        return False
    return True


def describe(field: Field) -> str:
    """What an input takes, in words."""
    if field.is_upload:
        return "a file (--input sends one)"
    if field.kind in ("COMBO", DYNAMIC):
        return "text" if field.choices is None else _list_choices(field.choices)
    return _expected(field)


def default(field: Field) -> Any:
    """What a new node has there; None where that is nothing."""
    if field.kind == DYNAMIC:
        return first_choice(field.rules)
    if "default" in field.rules:
        return field.rules["default"]
    if field.kind == "COMBO":
        return next(iter(field.choices or ()), None)
    if field.kind in ("INT", "FLOAT"):
        return max(field.rules.get("min", 0), 0)
    return {"BOOLEAN": False, "STRING": ""}.get(field.kind)


def from_text(value: Any) -> Any:
    """Text as JSON where it is JSON (5, true, "quoted", [1, 2]), else as it stands; what is no text stays itself."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, strict=True, parse_constant=str)
    except ValueError:
        return value


def as_text(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    parsed = from_text(value) if value.startswith('"') else value
    return parsed if isinstance(parsed, str) else value


def _choose(field: Field, value: Any) -> Any:
    parsed, choices = from_text(value), field.choices
    if choices is None or field.is_upload or "remote" in field.rules:
        return parsed if isinstance(parsed, list) else as_text(value)
    if field.rules.get("multiselect") and isinstance(parsed, list):
        if not (wrong := [one for one in parsed if one not in choices]):
            return parsed
        value = as_text(wrong[0])
    for one in (value, parsed, as_text(value)):
        if any(one == choice and type(one) is type(choice) for choice in choices):
            return one
    wanted = f"it must be {_list_choices(choices, str(value))}"
    fault = wanted if choices else "the server has nothing to choose from there"
    raise UserError(f"{field.name} of {field.label} is {_shown(value)}; {fault}.")


def _list_choices(choices: Sequence[Any], near: str = "") -> str:
    if not choices:
        return "nothing to choose from on this server"
    if len(choices) <= MANY:
        return f"one of {', '.join(map(str, choices))}"
    like = difflib.get_close_matches(near, list(map(str, choices)), 3, 0.3) or list(map(str, choices[:3]))
    return f"one of the {len(choices)} that the server knows, such as {', '.join(like)}"


def _shown(value: Any) -> str:
    text = str(value)
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'


def _expected(field: Field) -> str:
    words = CHECKS[field.kind][1] if field.kind in CHECKS else "text" if field.kind == "STRING" else "text or JSON"
    if field.kind not in ("INT", "FLOAT") or not {"min", "max"} & set(field.rules):
        return words
    return f"{words} from {field.rules.get('min', -math.inf)} to {field.rules.get('max', math.inf)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_within(rules: Rules, value: Any) -> bool:
    """A number, or the ends of a RANGE, which has limits of its own."""
    low, high = rules.get("min", -math.inf), rules.get("max", math.inf)
    numbers = [value] if _is_number(value) else []
    if isinstance(value, Mapping) and "min" in value:
        low, high = rules.get("value_min", -math.inf), rules.get("value_max", math.inf)
        numbers = [value["min"], value["max"]]
    return all(low <= number <= high for number in numbers)


def _is_color(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value) is not None


def _is_box(value: Any) -> bool:
    sides = ("x", "y", "width", "height")
    return isinstance(value, Mapping) and all(_is_int(value.get(side)) and value[side] >= 0 for side in sides)


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_curve(value: Any) -> bool:
    points = value.get("points") if isinstance(value, Mapping) else value
    return bool(points) and _each(lambda point: _each(_is_number)(point) and len(point) == 2)(points)


def _is_range(value: Any) -> bool:
    ends = isinstance(value, Mapping) and _is_number(value.get("min")) and _is_number(value.get("max"))
    return ends and (value.get("midpoint") is None or _is_number(value["midpoint"]))


DRAWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "COLOR": (_is_color, 'a color such as "#ff8000"'),
    "COLORS": (_each(_is_color), 'a list of colors such as ["#ff8000", "#000000"]'),
    "BOUNDING_BOX": (_is_box, 'a box such as {"x": 0, "y": 0, "width": 512, "height": 512}, in pixels'),
    "BOUNDING_BOXES": (_each(_is_box), 'a list of boxes such as [{"x": 0, "y": 0, "width": 512, "height": 512}]'),
    "CURVE": (_is_curve, 'a curve such as {"points": [[0, 0], [1, 1]], "interpolation": "linear"}'),
    "RANGE": (_is_range, 'a range such as {"min": 0, "max": 1}'),
    "COMPOSITOR": (
        lambda value: isinstance(value, Mapping),
        'an object as the editor saves it, such as {"layers": []}',
    ),
}
"""Widgets that are drawn in the browser and hold plain data, which can be written as JSON."""
CHECKS = DRAWN | {
    "INT": (_is_int, "a whole number"),
    "FLOAT": (_is_number, "a number"),
    "BOOLEAN": (lambda value: isinstance(value, bool), "true or false"),
}
"""What fits a kind of input, and what that is in words."""
