"""What all commands have in common: one line instead of a traceback, and options that may stand anywhere."""

import logging
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import NO_MEMORY, UnfinishedError, UserError, is_out_of_memory

_log = logging.getLogger(__name__)

UNFINISHED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes: not all was done; something that the user can put right; Ctrl-C."""
ANYWHERE = ("--debug", "--quiet", "-q", "--verbose")
"""Options of `latentsync` itself that may also stand behind the command. Not -v, which is `run --video` there."""
CONTINUES = frozenset(
    {"run", "batch", "prepare", "download", "personalize", "train unet", "train syncnet", "train distill"}
)
"""Commands that keep what is finished when they are interrupted, and continue from it when they are run again."""


class Commands(TyperGroup):
    """Every command's last resort: one line instead of a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ours = args[: args.index("--")] if "--" in args else args
        first = [word for word in ours if word in ANYWHERE] if ctx.parent is None else []
        return super().parse_args(ctx, [*first, *(word for word in ours if word not in first), *args[len(ours) :]])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _hide_type(command.get_help_option(ctx))
        return command

    def get_params(self, ctx: Any) -> Any:
        """Options of a group are switches: --version, --install-completion, --help."""
        return [_hide_type(option) for option in super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo(f"interrupted; {_what_is_left(ctx)}", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except (UserError, MemoryError, OSError, RuntimeError, ImportError) as error:
            sentence = _for_users(error)
            if not sentence:
                raise
            _log.debug("the error came from here", exc_info=True)
            typer.echo(f"error: {sentence}", err=True)
            raise typer.Exit(UNFINISHED if isinstance(error, UnfinishedError) else BAD_INPUT) from error


def _hide_type(option: Any) -> Any:
    """A switch takes no value, so the help needs no word for one."""
    option.metavar = ""
    return option


def _what_is_left(ctx: Any) -> str:
    group = ctx.command_path.removeprefix(ctx.find_root().command_path)
    if f"{group} {ctx.invoked_subcommand}".strip() in CONTINUES:
        return "finished work is kept, and the same command continues from there"
    return "no partial files were left"


def _for_users(error: Exception) -> str:
    """One line about what a user can put right; empty where only a traceback helps."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return NO_MEMORY
    from .doctor import package_problem

    return package_problem(error)
