"""What a YAML file for --config and --set say: settings of ours, or a configuration of the public project."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from ..errors import UserError
from .public_config import PublicConfig, is_public, read_public
from .yaml_files import load_yaml, read_yaml

SET = "--set"
Files = TypeVar("Files")


@dataclass(frozen=True)
class Config:
    """settings: by the recipe's names, converted. public: what a public configuration was translated from."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    public: PublicConfig | None = None


def read_config(kind: Any, path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a file, or nothing, and set what overrides ("a.b=c") say. kind: the recipe's dataclass."""
    content = apply_overrides(read_yaml(path) if path else {}, overrides)
    if not is_public(content):
        return Config(_checked(kind, content, path), path)
    public = read_public(content, path)
    if public.network != kind.network_kind:
        raise UserError(f"{path or SET} configures a {public.network}; give it to `latentsync train {public.command}`.")
    return Config(_checked(kind, public.settings, path), path, public)


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """content with values set by "a.b=c"; c is read as YAML."""
    out = dict(content)
    for override in overrides:
        name, equals, text = override.partition("=")
        *sections, last = keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f"{SET} {override} is not NAME=VALUE; write for instance {SET} learning_rate=2e-5.")
        place = out
        for section in sections:
            inner = place.get(section, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"{SET} {override}: {section} is {inner!r}, which has no parts; leave out the dot.")
            place[section] = inner = dict(inner)
            place = inner
        place[last] = _parsed(text, override)
    return out


def _parsed(text: str, override: str) -> Any:
    yaml = load_yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{SET} {override}: the value cannot be read as YAML; quote it.") from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """base with the values of changes, mapping by mapping."""
    out = dict(base)
    for name, value in changes.items():
        inner = out.get(name)
        out[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def fill_files(files: Files, config: Config) -> Files:
    """The run's input files (a dataclass) with those that a public configuration names, where none is given."""
    if config.public is None:
        return files
    stated = {name: value for name, value in config.public.files.items() if hasattr(files, name)}
    inputs: Any = files
    defaults = {part.name: part.default for part in dataclasses.fields(inputs)}
    used = {name: value for name, value in stated.items() if getattr(files, name) == defaults[name]}
    init = used.get("init")
    if init and not Path(init).exists():
        raise UserError(
            f"{config.path or SET} starts from {init}, which is not here; give --init (1.5, 1.6, sd15 or a file), or"
            f" {SET} ckpt.resume_ckpt_path= for random weights."
        )
    return dataclasses.replace(inputs, **used)


def _checked(kind: Any, content: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    hints, source, out = get_type_hints(kind), path or SET, {}
    names = {part.name for part in dataclasses.fields(kind)}
    for name, value in content.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            advice = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(sorted(names))}."
            raise UserError(f"{source} sets {name}, which is not a setting; {advice}")
        try:
            out[name] = _convert(hints[name], value)
        except (TypeError, ValueError) as error:
            kinds = {int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
            wanted = kinds.get(hints[name], "a text or a list of texts")
            raise UserError(f"{source} sets {name} to {value!r}; {wanted} is needed.") from error
    return out


def _convert(hint: Any, value: Any) -> Any:
    """A YAML value to the type of a field. YAML 1.1 reads 1e-5 as a text."""
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(value)
        return tuple(map(str, value))
    if hint is str or not isinstance(hint, type):
        return str(value)
    if type(value) is not hint:
        raise TypeError(value)
    return value
