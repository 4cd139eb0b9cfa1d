"""`latentsync eval`: how good is a clip, a folder, a SyncNet? It parses, calls evaluation/ and prints."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.clips import Followed
    from ..evaluation.measure import Result, Tools
    from ..evaluation.syncnet_sync import CountCallback, Vae
    from ..face.detect import FaceFinder
    from ..models.syncnet import SyncNet

_ONE, _MANY = ("measure", "value", "better"), ("measure", "mean ± deviation", "better", "over")
_NETS, _OUT = "Networks (what needs one and has none is listed as not measured)", "What comes back"

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure clips: sync, likeness to a truth, steadiness; and how often a SyncNet is right.

    \b
      latentsync eval sync out.mp4 --syncnet syncnet-v2
      latentsync eval compare made.mp4 true.mp4 --json - --picture curves.png
      latentsync eval compare made/ true/
      latentsync eval measure results/
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
VaeName = Annotated[
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
    str | None, _option(_NETS, "--fid-network", metavar="NET", help="inception (by torchmetrics), or TorchScript.")
]
FvdNet = Annotated[
    str | None,
    _option(_NETS, "--fvd-network", metavar="NET", help="I3D as TorchScript, or the folder of a VideoMAE."),
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


@dataclass(frozen=True)
class Said:
    """What a command found: a headline, rows of a table under their titles, what was not measured, all of it for JSON,
    and the picture."""

    title: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    skipped: Sequence[Sequence[str]]
    facts: dict[str, Any]
    draw: "Callable[[], np.ndarray]"


@app.command()
def sync(
    clip: Annotated[Path, typer.Argument(help="A video.")],
    audio: Annotated[
        Path | None, typer.Option("--audio", "-a", metavar="FILE", help="Another sound than the video's own.")
    ] = None,
    syncnet: Syncnet = None,
    vae: VaeName = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The clip is an aligned crop, as `latentsync prepare` makes them.")
    ] = False,
    face: Face = Settings.face,
    device: Device = "auto",
    report: Json = None,
    picture: Picture = None,
) -> None:
    """Do the lips follow the sound? LSE-C, LSE-D and offset by a SyncNet, and the measure by landmarks.

    A positive offset: the sound comes after the picture.
    """
    _check_places(report, picture)
    net, own_vae = _judge(syncnet, vae, device)
    if aligned:
        said = _sync_aligned(clip, audio, net, own_vae)
    else:
        said = _sync_video(clip, audio, net, own_vae, face)
    _tell(said, report, picture)


def _sync_aligned(clip: Path, audio: Path | None, net: "SyncNet | None", vae: "Vae | None") -> Said:
    from ..dataset import clip_files
    from ..evaluation.clips import sync_aligned
    from ..evaluation.report import draw_sync, sync_rows

    if net is None or audio is not None:
        raise UserError("An aligned crop is judged by a SyncNet with its own sound: give --syncnet and no --audio.")
    with _steps(clip.name) as on_step:
        score = sync_aligned(net, clip_files([clip])[0], vae=vae, on_step=on_step)
    facts = {"clip": str(clip), "sync": score.as_dict()}
    return Said(clip.name, _ONE, sync_rows(score), (), facts, lambda: draw_sync(score, clip.name))


def _sync_video(clip: Path, audio: Path | None, net: "SyncNet | None", vae: "Vae | None", face: str) -> Said:
    from ..evaluation.charts import draw_chart, verdict
    from ..evaluation.clips import follow, sync_clip
    from ..evaluation.landmark_sync import score_track
    from ..evaluation.report import draw_sync, landmark_rows, sync_rows

    with _finder() as finder, _steps(clip.name) as on_step:
        found = follow(clip, finder, face=face, on_step=on_step)
        speech = found.speech(audio)
        marks = score_track(found.track, speech, found.fps)
        score = sync_clip(net, found, speech, vae=vae, on_step=on_step) if net else None
    rows = [*(sync_rows(score) if score else ()), *landmark_rows(marks)]
    skipped = () if score else (("LSE-C, LSE-D, offset by SyncNet", "give --syncnet"),)
    facts = {"clip": str(clip), "sync": score.as_dict() if score else None, "landmarks": marks.as_dict()}
    title = f"{clip.name}: {verdict(marks)} (by landmarks)"
    return Said(title, _ONE, rows, skipped, facts, lambda: draw_sync(score, clip.name) if score else draw_chart(marks))


@app.command()
def compare(
    made: Annotated[Path, typer.Argument(help="What was made: a video, or a folder of them.")],
    true: Annotated[Path, typer.Argument(help="The truth: a video, or a folder with the same names in it.")],
    syncnet: Syncnet = None,
    vae: VaeName = None,
    lpips: LpipsNet = None,
    identity_network: IdentityNet = None,
    fid_network: FidNet = None,
    fvd_network: FvdNet = None,
    face: Face = Settings.face,
    device: Device = "auto",
    report: Json = None,
    picture: Picture = None,
) -> None:
    """Hold a made clip against the true one, frame by frame, or a folder against a folder.

    Mouth opening, lip landmarks, PSNR, SSIM, gradients, sharpness, flicker; LPIPS, identity, FID and FVD with their
    networks. Both must show the same frames.
    """
    from ..evaluation.measure import compare as held_against

    _check_places(report, picture)
    if made.is_dir() != true.is_dir():
        raise UserError(f"{made} and {true} are a folder and a file; give two videos, or two folders.")
    tools = _tools(syncnet, vae, device, lpips, identity_network, fid_network, fvd_network)
    pairs, left_out = _pairs(made, true) if made.is_dir() else ({made.name: (made, true)}, {})
    results: list[Result] = []
    with _finder() as finder:
        for name, (a, b) in pairs.items():
            with _leaving_out(name, left_out, alone=len(pairs) == 1), _steps(name) as on_step:
                clips = _follow(a, finder, face, on_step), _follow(b, finder, face, on_step)
                results.append(held_against(*clips, tools, name=name, on_step=on_step))
    _tell(_said(results, left_out, tools), report, picture)


@app.command()
def measure(
    place: Annotated[Path, typer.Argument(metavar="PLACE", help="A video, or a folder of them.")],
    syncnet: Syncnet = None,
    vae: VaeName = None,
    face: Face = Settings.face,
    device: Device = "auto",
    report: Json = None,
    picture: Picture = None,
) -> None:
    """Measure one clip, or every clip of a folder, without a truth: sync, sharpness, flicker."""
    from ..evaluation.clips import videos
    from ..evaluation.measure import measure as alone

    _check_places(report, picture)
    tools = _tools(syncnet, vae, device)
    left_out: dict[str, str] = {}
    results: list[Result] = []
    paths = videos(place) if place.is_dir() else {place.name: place}
    with _finder() as finder:
        for name, path in paths.items():
            with _leaving_out(name, left_out, alone=len(paths) == 1), _steps(name) as on_step:
                results.append(alone(_follow(path, finder, face, on_step), tools, name=name, on_step=on_step))
    _tell(_said(results, left_out, tools), report, picture)


@app.command("syncnet-accuracy")
def accuracy(
    net: Annotated[str, typer.Argument(metavar="NET", help="A StableSyncNet: a file, or a known name.")],
    prepared: Annotated[
        Path, typer.Argument(help="A folder that `latentsync prepare` made, a file list, or a folder of aligned clips.")
    ],
    pairs: Annotated[int, typer.Option(min=2, help="Pairs drawn from each clip, half of them in sync.")] = 8,
    holdout_time: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Measure on this share of every clip only.")
    ] = 1.0,
    holdout_at: Annotated[
        float, typer.Option(min=0, max=1, help="Where that share lies: 0 at the beginning, 1 at the end.")
    ] = 0.5,
    holdout_people: Annotated[
        str, typer.Option(metavar="NAMES", help="Leave out recordings with these name prefixes.", show_default=False)
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Only recordings with these prefixes (anna,ben).", show_default=False)
    ] = "",
    min_shift: Annotated[int, typer.Option(min=1, help="Smallest shift of a shifted pair, in frames.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pairs.")] = 1247,
    vae: VaeName = None,
    device: Device = "auto",
    report: Json = None,
    picture: Picture = None,
) -> None:
    """Accuracy of a SyncNet on pairs of frames and audio, half of them shifted within their clip.

    At threshold 0.5, and at the threshold that is best on every second clip, measured on the others.

    \b
    After a training with --holdout-time 0.25 --holdout-people anna,ben:
      latentsync eval syncnet-accuracy NET DATA --holdout-time 0.25 --holdout-people anna,ben    held-out time
      latentsync eval syncnet-accuracy NET DATA --only anna,ben                                  held-out people
    """
    from ..dataset import find_clips, holdout_part
    from ..evaluation.report import accuracy_rows, draw_accuracy
    from ..evaluation.syncnet_accuracy import syncnet_accuracy

    _check_places(report, picture)
    judge, own_vae = _judge(net, vae, device)
    assert judge is not None
    taken, left = _names(only), _names(holdout_people)
    clips = [
        replace(clip, part=holdout_part(holdout_time, holdout_at))
        for clip in find_clips(prepared)
        if (not taken or clip.is_of(taken)) and not clip.is_of(left)
    ]
    if not clips:
        raise UserError(f"{prepared} has no recording that --only and --holdout-people leave; check the names.")
    with _steps("clips") as on_step:
        found = syncnet_accuracy(
            judge, clips, seed=seed, pairs=pairs, min_shift=min_shift, vae=own_vae, on_clip=on_step
        )
    facts = {
        "net": net,
        "prepared": str(prepared),
        "seed": seed,
        "holdout_time": holdout_time,
        "holdout_at": holdout_at,
        "holdout_people": left,
        "only": taken,
        "min_shift": min_shift,
    } | found.as_dict()
    title = f"{net} on {prepared}"
    skipped = list(found.skipped.items())
    _tell(Said(title, (), accuracy_rows(found), skipped, facts, lambda: draw_accuracy(found, title)), report, picture)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _said(results: "list[Result]", left_out: dict[str, str], tools: "Tools") -> Said:
    from ..evaluation import report as told

    if not results:
        raise UserError(f"None of the clips could be measured: {next(iter(left_out.values()), 'there are none')}")
    summary = told.summarise(results, left_out, {"fid": tools.fid, "fvd": tools.fvd})
    skipped = [*told.skipped_rows(results), *summary.left_out.items()]
    facts = {"clips": [r.as_dict() for r in results], "summary": summary.as_dict()}
    if len(results) == 1:
        only = results[0]
        rows = [*told.rows(only), *told.frechet_rows(summary)]
        draw = (lambda: told.draw_comparison(only)) if only.curves else (lambda: told.draw_many(results))
        return Said(f"{only.name}: {only.frames} frames", _ONE, rows, skipped, facts, draw)
    return Said(
        f"{len(results)} clips", _MANY, told.summary_rows(summary), skipped, facts, lambda: told.draw_many(results)
    )


def _pairs(made: Path, true: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """Clips of the same name in both folders, whatever their ending; and which have no partner."""
    from ..evaluation.clips import videos

    ours, theirs = videos(made), videos(true)
    pairs = {name: (path, theirs[name]) for name, path in ours.items() if name in theirs}
    if not pairs:
        raise UserError(f"{made} and {true} have no video of the same name; give folders whose names agree.")
    alone = dict.fromkeys(sorted(ours.keys() - pairs), f"only in {made}")
    return pairs, alone | dict.fromkeys(sorted(theirs.keys() - pairs), f"only in {true}")


def _judge(name: str | None, vae: str | None, device: str) -> "tuple[SyncNet | None, Vae | None]":
    from ..models.device import pick_device
    from ..weights.registry import find, is_registered
    from ..weights.syncnet_files import load_syncnet
    from ..weights.vae_files import load_vae
    from .console import waiting

    if name is None:
        return None, None
    with waiting(f"loading {name}"):
        where = pick_device(device)
        net = load_syncnet(find(name) if is_registered(name) else Path(name), device=where)
        return net, load_vae(vae, device=where) if vae else None


def _tools(
    syncnet: str | None,
    vae: str | None,
    device: str,
    lpips: str | None = None,
    identity: Path | None = None,
    fid: str | None = None,
    fvd: str | None = None,
) -> "Tools":
    from ..evaluation.identity import Identity
    from ..evaluation.image_metrics import FVD_FRAMES, Frechet
    from ..evaluation.measure import Tools
    from ..evaluation.networks import Lpips, Network, fid_network, fvd_network
    from ..models.device import pick_device

    where = pick_device(device)
    net, own_vae = _judge(syncnet, vae, device)
    return Tools(
        net,
        own_vae,
        Lpips(lpips, where) if lpips else None,
        Identity(Network(identity, where)) if identity else None,
        Frechet(fid_network(fid, where)) if fid else None,
        Frechet(fvd_network(fvd, where), FVD_FRAMES, batch=1) if fvd else None,
    )


def _finder() -> "FaceFinder":
    from ..face.detect import FaceFinder
    from ..weights.registry import find

    return FaceFinder(find("face_landmarker.task"))


def _follow(path: Path, finder: "FaceFinder", face: str, on_step: "CountCallback") -> "Followed":
    from ..evaluation.clips import follow

    return follow(path, finder, face=face, on_step=on_step)


@contextmanager
def _leaving_out(name: str, left_out: dict[str, str], alone: bool = False) -> Iterator[None]:
    """One clip that cannot be used does not end the work on the others."""
    try:
        yield
    except UserError as error:
        if alone:
            raise
        left_out[name] = str(error)


@contextmanager
def _steps(name: str) -> "Iterator[CountCallback]":
    """A bar on a terminal, which a second pass over the same clip starts again."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)


def _check_places(report: Path | None, picture: Path | None) -> None:
    """What can be found wrong before the work."""
    if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--picture is {picture}; its name must end in .png or .jpg.")
    for path in (report, picture):
        if path is None or str(path) == "-":
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"{path} cannot be written there; name a file in a folder that can be written to.")


def _tell(said: Said, report: Path | None, picture: Path | None) -> None:
    from rich.markup import escape

    from .console import show_json, show_table, write_json
    from .contact_sheet import write_picture

    if str(report) == "-":
        show_json(said.facts)
    else:
        typer.echo(said.title)
        show_table([[escape(cell) for cell in row] for row in said.rows], said.titles)
        if said.skipped:
            typer.echo("not measured:")
            show_table([[escape(f"  {name}"), escape(why)] for name, why in said.skipped])
    if report is not None and str(report) != "-":
        write_json(report, said.facts)
    if picture is not None:
        write_picture(picture, said.draw())
