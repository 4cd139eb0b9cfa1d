"""`latentsync eval`: how good is a clip, a folder, a SyncNet? It parses, calls evaluation/ and prints."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UserError
from .settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from .evaluation.lse import OnStep, Vae
    from .evaluation.measure import Result, Tools
    from .face.detect import FaceFinder
    from .models.syncnet import SyncNet

_NETS, _OUT = "Networks (what needs one and has none is listed as not measured)", "What comes back"

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure clips: sync, likeness to a truth, steadiness; and how often a SyncNet is right.

    \b
      latentsync eval sync out.mp4 --syncnet syncnet-v2
      latentsync eval compare made.mp4 true.mp4 --json - --picture curves.png
      latentsync eval compare made/ true/
      latentsync eval folder results/
      latentsync eval syncnet-accuracy syncnet.safetensors prepared/
    """,
)


def _option(panel: str, *names: str, **rest: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **rest)


Syncnet = Annotated[
    str | None,
    _option(
        _NETS,
        "--syncnet",
        metavar="NAME|FILE",
        envvar="LATENTSYNC_SYNCNET",
        help="For LSE-C, LSE-D and the offset: syncnet-v2 (Chung's), syncnet-1.6, or a file, such as one of yours.",
    ),
]
Vae_ = Annotated[
    str | None, _option(_NETS, "--vae", metavar="NAME|FILE", help="For a SyncNet that judges latents: its VAE.")
]
LpipsNet = Annotated[
    str | None,
    _option(_NETS, "--lpips", metavar="NAME|FILE", help="alex, vgg or squeeze (by torchmetrics), or TorchScript."),
]
IdentityNet = Annotated[
    Path | None, _option(_NETS, "--identity-network", metavar="FILE", help="Face recognition as TorchScript, 112 px.")
]
FidNet = Annotated[
    Path | None, _option(_NETS, "--fid-network", metavar="FILE", help="Inception features as TorchScript, for FID.")
]
FvdNet = Annotated[
    Path | None, _option(_NETS, "--fvd-network", metavar="FILE", help="I3D features as TorchScript, for FVD.")
]
Device = Annotated[str, _option(_NETS, "--device", metavar="NAME", help="auto, cpu, cuda or mps.")]
Face = Annotated[
    str, typer.Option("--face", metavar="WHICH", help="largest, left, right, a number, or x,y,frame in pixels.")
]
Json = Annotated[
    Path | None, _option(_OUT, "--json", metavar="REPORT", help="Also write everything as JSON; - is the screen.")
]
Picture = Annotated[
    Path | None, _option(_OUT, "--picture", metavar="PICTURE", help="Also draw the curves (.png, .jpg).")
]


@app.command()
def sync(
    clip: Annotated[Path, typer.Argument(help="A video.")],
    audio: Annotated[
        Path | None, typer.Option("--audio", "-a", metavar="FILE", help="Another sound than the video's own.")
    ] = None,
    syncnet: Syncnet = None,
    vae: Vae_ = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The clip is an aligned crop, as `latentsync prepare` makes them.")
    ] = False,
    face: Face = Settings.face,
    device: Device = "auto",
    report: Json = None,
    picture: Picture = None,
) -> None:
    """Do the lips follow the sound? LSE-C, LSE-D and offset by a SyncNet; without one, the landmarks' own measure.

    A positive offset: the sound comes after the picture.
    """
    from .evaluation import report as told
    from .evaluation.chart import draw_chart
    from .evaluation.clips import follow, sync_aligned, sync_clip
    from .evaluation.sync import score_track

    _check_places(report, picture)
    net, own_vae = _judge(syncnet, vae, device)
    if aligned:
        if net is None:
            raise UserError("An aligned crop is judged by a SyncNet only; give one by --syncnet.")
        _prepared_alone(audio)
        with _steps(clip.name) as on_step:
            score = sync_aligned(net, clip, vae=own_vae, on_step=on_step)
        _tell_sync(score.as_dict(), clip, report)
        _draw(picture, lambda: told.draw_sync(score, clip.name))
        return
    with _finder() as finder, _steps(clip.name) as on_step:
        found = follow(clip, finder, face=face, on_step=on_step)
        speech = found.speech(audio)
        if net is not None:
            score = sync_clip(net, found, speech, vae=own_vae, on_step=on_step)
    if net is not None:
        _tell_sync(score.as_dict(), clip, report)
        _draw(picture, lambda: told.draw_sync(score, clip.name))
        return
    marks = score_track(found.track, speech, found.fps)
    _tell_marks(marks.as_dict(), clip, report)
    _draw(picture, lambda: draw_chart(marks))
