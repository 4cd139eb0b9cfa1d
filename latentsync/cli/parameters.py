"""Commands whose options are the fields of dataclasses."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer


def option(panel: str | None, names: str, help: str, metavar: str | None = None, **rest: Any) -> Any:
    """names: separated by spaces; "" derives the name from the field."""
    return typer.Option(*names.split(), help=help, metavar=metavar, rich_help_panel=panel, **rest)


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by one option per field.

    A field is Annotated with option(…), or its metadata are keywords of typer.Option.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = []
    for one in signature(command).parameters.values():
        if one.name not in groups:
            parameters.append(one.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[one.name]))
            continue
        kinds = get_type_hints(groups[one.name], include_extras=True)
        for field in fields(groups[one.name]):
            annotation = list[str] if kinds[field.name] == tuple[str, ...] else kinds[field.name]
            if field.metadata:
                annotation = Annotated[annotation, typer.Option(f"--{field.name.replace('_', '-')}", **field.metadata)]
            parameters.append(
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
            )

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    expanded.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {one.name: one.annotation for one in parameters}
    return expanded
