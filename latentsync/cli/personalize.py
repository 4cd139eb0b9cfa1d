"""`latentsync personalize`: a model of one person from recordings of them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import FootageError, UserError
from ..settings import Settings
from .parameters import expand_options, option

_RUN, _WHAT, _MACHINE = "What goes in and out", "How it is trained", "Machine and models"


@expand_options
def personalize(
    clips: Annotated[list[Path], typer.Argument(help="Videos in which the person speaks.", metavar="CLIP…")],
    out: Annotated[Path, option(_RUN, "--out -o", "The model to write, .safetensors.", "FILE")],
    person: Annotated[str, option(_RUN, "", "A label for the file and its page. Else the file's name.", "NAME")] = "",
    consent: Annotated[
        bool,
        option(_RUN, "--consent", "The person has agreed. Else you must confirm.", show_default=False),
    ] = False,
    checkpoint: Annotated[
        str, option(_WHAT, "--checkpoint -c", "nano, 1.5, 1.6 or a file: what the model is for.", "NAME")
    ] = "nano",
    minutes: Annotated[float, option(_WHAT, "", "Train for at most this long. 0: all steps.")] = 0.0,
    steps: Annotated[int, option(_WHAT, "", "Train at most this number of steps. 0: what suits the checkpoint.")] = 0,
    face: Annotated[
        str, option(_WHAT, "", "Which person, if several are in view: left, right or a number.", "FACE")
    ] = Settings.face,
    preview: Annotated[
        bool, option(_WHAT, "--preview", "Only check the clips, say what training takes, and write the page.")
    ] = False,
    anyway: Annotated[bool, option(_WHAT, "--anyway", "Train although something is wrong with the clips.")] = False,
    seed: Annotated[int, option(_WHAT, "", "The same number gives the same model.")] = 1247,
    device: Annotated[str, option(_MACHINE, "", "auto, cpu, cuda or mps.", "NAME")] = "auto",
) -> None:
    """Make a model of one person: their mouth, as sharp as in the video.

    \b
    A minute of someone speaking to the camera, and twenty minutes on two
    CPU cores. Run the same command again to continue a killed run:
      latentsync personalize me.mp4 -o me.safetensors
      latentsync run -v clip.mp4 -a speech.wav -o out.mp4 --lora me.safetensors

    \b
    Is the footage good enough?
      latentsync personalize me.mp4 -o me.safetensors --preview
    """
    from ..training.personal.run import CONSENT, Request
    from ..training.personal.run import personalize as make
    from ..training.progress import duration
    from ..training.signals import stop_on_signals
    from .console import LinesAndBar

    request = Request(
        clips, out, checkpoint, person, face, minutes=minutes, steps=steps, anyway=anyway, preview=preview, seed=seed,
        device=device,
    )  # fmt: skip
    request.check()
    if not (consent or preview or _agreed(CONSENT)):
        raise UserError(f"{CONSENT} If that is so, add --consent.")
    stop = _Stop()
    try:
        with stop_on_signals(stop.ask):
            made = make(request, LinesAndBar(), stop.is_asked)
    except FootageError as error:
        raise UserError(f"{error} To train all the same, add --anyway; --face says which person is meant.") from error
    if made.after is None:
        typer.echo(f"{made.page} shows what {checkpoint} alone does; nothing was trained")
        return
    typer.echo(f"{made.lora} after {made.steps} steps in {duration(made.seconds)}; see {made.page}")
    for name in ("opening", "similarity", "sharpness"):
        typer.echo(f"  {name} on held-out seconds: {getattr(made.before, name):.2f} → {getattr(made.after, name):.2f}")


@dataclass
class _Stop:
    """Ctrl-C ends the command at once while clips are read, and the second time; training is saved first."""

    training: bool = False
    asked: bool = False

    def ask(self) -> None:
        if self.asked or not self.training:
            raise KeyboardInterrupt
        self.asked = True

    def is_asked(self) -> bool:
        self.training = True
        return self.asked


def _agreed(question: str) -> bool:
    """Asked on a terminal; elsewhere nobody could answer."""
    return sys.stdin.isatty() and typer.confirm(f"{question} Is that so?", err=True)
