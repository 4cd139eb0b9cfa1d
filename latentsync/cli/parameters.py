"""Commands whose options are the fields of dataclasses."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo


def option(panel: str | None, names: str, help: str, metavar: str | None = None, **rest: Any) -> Any:
    """names: separated by spaces; "" derives the name from the field."""
    return typer.Option(*names.split(), help=help, metavar=metavar, rich_help_panel=panel, **rest)


def choice(panel: str | None, names: str, default: Any, help: str, metavar: str | None = None, **rest: Any) -> Any:
    """The same as a dataclass field with its default."""
    return field(default=default, metadata=dict(names=names, help=help, metavar=metavar, rich_help_panel=panel, **rest))


METAVARS: Mapping[type, str] = {bool: "", int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""What the help calls a value where the option does not say it; switches have none."""


def _with_metavar(annotation: Any) -> Any:
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    while inner := [one for one in get_args(kind) if one is not type(None)]:
        kind = inner[0]
    for details in getattr(annotation, "__metadata__", ()):
        if isinstance(details, OptionInfo) and details.metavar is None:
            details.metavar = METAVARS.get(kind)
    return annotation


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by one option per field.

    A field is a choice(…), is Annotated with option(…), or has keywords of typer.Option as its metadata.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = []
    for one in signature(command).parameters.values():
        if one.name not in groups:
            annotation = _with_metavar(hints[one.name])
            parameters.append(one.replace(kind=Parameter.KEYWORD_ONLY, annotation=annotation))
            continue
        kinds = get_type_hints(groups[one.name], include_extras=True)
        for entry in fields(groups[one.name]):
            annotation = list[str] if kinds[entry.name] == tuple[str, ...] else kinds[entry.name]
            if entry.metadata:
                details = {"names": f"--{entry.name.replace('_', '-')}", **entry.metadata}
                annotation = Annotated[annotation, typer.Option(*details.pop("names").split(), **details)]
            default = Parameter.empty if entry.default is MISSING else entry.default
            annotation = _with_metavar(annotation)
            parameters.append(Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{entry.name: values.pop(entry.name) for entry in fields(kind)})
        command(**values)

    expanded.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {one.name: one.annotation for one in parameters}
    return expanded
