"""`latentsync eval`: measures of a clip, of a folder, of a SyncNet."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..settings import ProgressCallback, Settings
from .console import check_writable, show_json, show_table, stages, waiting, write_json
from .group import Commands
from .parameters import choice, expand_options, option

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.measure import Networks, Result
    from ..face.detect import FaceFinder
    from ..models.syncnet import SyncNet
    from ..models.vae import VAE

_ONE, _MANY = ("measure", "value", "better"), ("measure", "mean ± deviation", "better", "over")
_bars = partial(stages, (), keep=False)
_NETS, _OUT = "Networks (a measure without its network is listed as not measured)", "Output"

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure clips: sync, similarity to a reference, flicker; and the accuracy of a SyncNet.

    \b
      latentsync eval sync out.mp4 --syncnet syncnet-v2
      latentsync eval compare made.mp4 true.mp4 --json - --picture curves.png
      latentsync eval compare generated/ true/
      latentsync eval measure results/
      latentsync eval pairs videos/ speech/ -o pairs.csv
      latentsync eval runs nano/ mine/ --picture runs.png
      latentsync eval syncnet-accuracy syncnet.safetensors prepared/
    """,
)


VaeName = Annotated[str | None, option(_NETS, "--vae", "For a SyncNet on latents: its VAE.", "NAME|FILE")]
Device = Annotated[str, option(_NETS, "--device", "auto, cpu, cuda or mps.", "NAME")]


@dataclass(frozen=True)
class SyncNetOptions:
    syncnet: str | None = choice(
        _NETS, "", None,
        "For LSE-C, LSE-D and the offset: syncnet-v2 (Chung's), syncnet-1.6, or a file, for example your own.",
        "NAME|FILE", envvar="LATENTSYNC_SYNCNET",
    )  # fmt: skip
    vae: VaeName = None
    device: Device = "auto"

    def load(self) -> "tuple[SyncNet | None, VAE | None]":
        from ..models.device import pick_device
        from ..weights.registry import find, is_registered
        from ..weights.syncnet_files import load_syncnet
        from ..weights.vae_files import load_vae

        if self.syncnet is None:
            return None, None
        with waiting(f"loading {self.syncnet}"):
            device = pick_device(self.device)
            path = find(self.syncnet) if is_registered(self.syncnet) else Path(self.syncnet)
            return load_syncnet(path, device=device), load_vae(self.vae, device=device) if self.vae else None


@dataclass(frozen=True)
class QualityOptions:
    quality_network: str | None = choice(_NETS, "", None, "arniqa (by torchmetrics), or TorchScript.", "NAME|FILE")


@dataclass(frozen=True)
class MetricOptions:
    """Of pairs of clips."""

    lpips: str | None = choice(_NETS, "", None, "alex, vgg or squeeze (by torchmetrics), or TorchScript.", "NAME|FILE")
    identity_network: Path | None = choice(_NETS, "", None, "Face recognition as TorchScript, 112 px.", "FILE")


@dataclass(frozen=True)
class SetOptions:
    """Of all pairs together."""

    fid_network: str | None = choice(_NETS, "", None, "inception (by torchmetrics), or TorchScript.", "NET")
    fvd_network: str | None = choice(_NETS, "", None, "I3D as TorchScript, or the folder of a VideoMAE.", "NET")


@dataclass(frozen=True)
class OutputOptions:
    json: Path | None = choice(_OUT, "", None, "Also write everything as JSON; - prints it.", "REPORT")
    picture: Path | None = choice(_OUT, "", None, "Also draw the curves (.png, .jpg).", "PICTURE")

    def check(self) -> None:
        """Finds what is wrong with the paths before the work."""
        if self.picture is not None and self.picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise UserError(f"--picture is {self.picture}; its name must end in .png or .jpg.")
        for path in (self.json, self.picture):
            check_writable(path)


Face = Annotated[
    str, option(None, "--face", "auto, largest, left, right, a number, x,y,frame in pixels, or a photo.", "WHICH")
]


@dataclass(frozen=True)
class Findings:
    """What a command prints: a headline, table rows under their titles, what was not measured; content for JSON, and a
    function that draws the picture."""

    title: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    skipped: Sequence[Sequence[str]]
    content: dict[str, Any]
    draw: "Callable[[], np.ndarray]"

    def show(self, output: OutputOptions) -> None:
        from rich.markup import escape

        from .contact_sheet import write_picture

        if str(output.json) == "-":
            show_json(self.content)
        else:
            typer.echo(self.title)
            show_table([[escape(cell) for cell in row] for row in self.rows], self.titles)
            if self.skipped:
                typer.echo("not measured:")
                show_table([(escape(f"  {name}"), escape(reason)) for name, reason in self.skipped])
            if output.json is not None:
                write_json(output.json, self.content)
        if output.picture is not None:
            write_picture(output.picture, self.draw())


@app.command()
@expand_options
def sync(
    clip: Annotated[Path, typer.Argument(help="A video.")],
    networks: SyncNetOptions,
    output: OutputOptions,
    audio: Annotated[Path | None, option(None, "--audio -a", "Use this audio, not the video's own.", "FILE")] = None,
    aligned: Annotated[bool, option(None, "--aligned", "The clip is an aligned crop of `latentsync prepare`.")] = False,
    face: Face = Settings.face,
) -> None:
    """Lip sync of a clip: LSE-C, LSE-D and offset by a SyncNet, and offset and correlation by landmarks.

    A positive offset: the audio comes after the video.
    """
    output.check()
    net, vae = networks.load()
    findings = _sync_aligned(clip, audio, net, vae) if aligned else _sync_video(clip, audio, net, vae, face)
    findings.show(output)


def _sync_aligned(clip: Path, audio: Path | None, net: "SyncNet | None", vae: "VAE | None") -> Findings:
    from ..dataset import clip_files
    from ..evaluation.charts import draw_sync
    from ..evaluation.clips import sync_aligned
    from ..evaluation.report import sync_rows

    if net is None or audio is not None:
        raise UserError("An aligned crop is measured by a SyncNet with its own audio: give --syncnet and no --audio.")
    with _bars(title=clip.name) as on_progress:
        score = sync_aligned(net, clip_files([clip])[0], vae=vae, on_progress=on_progress)
    content = {"clip": str(clip), "sync": score.as_dict()}
    return Findings(clip.name, _ONE, sync_rows(score), (), content, lambda: draw_sync(score, clip.name))


def _sync_video(clip: Path, audio: Path | None, net: "SyncNet | None", vae: "VAE | None", face: str) -> Findings:
    from ..evaluation.charts import draw_chart, draw_sync
    from ..evaluation.clips import sync_clip, track_clip
    from ..evaluation.landmark_sync import score_track
    from ..evaluation.report import landmark_rows, sync_rows
    from ..evaluation.verdict import verdict

    with _finder() as finder, _bars(title=clip.name) as on_progress:
        tracked = track_clip(clip, finder, face=face, on_progress=on_progress)
        speech = tracked.speech(audio)
        landmarks = score_track(tracked.track, speech, tracked.fps)
        score = sync_clip(net, tracked, speech, vae=vae, on_progress=on_progress) if net else None
    rows = [*(sync_rows(score) if score else ()), *landmark_rows(landmarks)]
    skipped = () if score else (("LSE-C, LSE-D, offset by SyncNet", "give --syncnet"),)
    content = {"clip": str(clip), "sync": score.as_dict() if score else None, "landmarks": landmarks.as_dict()}
    title = f"{clip.name}: {verdict(landmarks)} (by landmarks)"
    draw = (lambda: draw_sync(score, clip.name)) if score else (lambda: draw_chart(landmarks))
    return Findings(title, _ONE, rows, skipped, content, draw)


@app.command()
@expand_options
def compare(
    made: Annotated[Path, typer.Argument(help="A generated video, or a folder of them.")],
    true: Annotated[Path, typer.Argument(help="The true video, or a folder with the same names in it.")],
    networks: SyncNetOptions,
    metrics: MetricOptions,
    sets: SetOptions,
    quality: QualityOptions,
    output: OutputOptions,
    face: Face = Settings.face,
) -> None:
    """Compare a generated clip with the original, frame by frame, or one folder with another.

    Mouth opening, lip landmarks, PSNR, SSIM, gradients, sharpness, flicker; LPIPS, identity, FID and FVD with their
    networks. Both must show the same frames.
    """
    output.check()
    nets = load_networks(networks, quality, metrics, sets)
    results, skipped = compare_all(made, true, nets, face)
    _findings(results, skipped, nets).show(output)


def compare_all(made: Path, true: Path, nets: "Networks", face: str) -> "tuple[list[Result], dict[str, str]]":
    """Of each pair of clips, or the reason why it was skipped."""
    from ..evaluation.clips import pair_videos, track_clip
    from ..evaluation.measure import compare as compare_clips

    if made.is_dir() != true.is_dir():
        raise UserError(f"{made} and {true} are a folder and a file; give two videos, or two folders.")
    pairs, skipped = pair_videos(made, true) if made.is_dir() else ({made.name: (made, true)}, {})

    def run(name: str, finder: "FaceFinder", on_progress: ProgressCallback) -> "Result":
        first, second = (track_clip(path, finder, face=face, on_progress=on_progress) for path in pairs[name])
        return compare_clips(first, second, nets, name=name, on_progress=on_progress)

    return _each(list(pairs), skipped, run)


@app.command()
@expand_options
def measure(
    place: Annotated[Path, typer.Argument(metavar="PLACE", help="A video, or a folder of them.")],
    networks: SyncNetOptions,
    quality: QualityOptions,
    output: OutputOptions,
    face: Face = Settings.face,
) -> None:
    """Measure one clip, or every clip of a folder, without a reference: sync, sharpness, flicker, image quality."""
    output.check()
    nets = load_networks(networks, quality)
    results, skipped = measure_all(place, nets, face)
    _findings(results, skipped, nets).show(output)


def measure_all(place: Path, nets: "Networks", face: str) -> "tuple[list[Result], dict[str, str]]":
    """Of each clip, or the reason why it was skipped."""
    from ..evaluation.clips import track_clip, videos
    from ..evaluation.measure import measure as measure_clip

    paths = videos(place) if place.is_dir() else {place.name: place}

    def run(name: str, finder: "FaceFinder", on_progress: ProgressCallback) -> "Result":
        clip = track_clip(paths[name], finder, face=face, on_progress=on_progress)
        return measure_clip(clip, nets, name=name, on_progress=on_progress)

    return _each(list(paths), {}, run)


@dataclass(frozen=True)
class PairOptions:
    pairs: int = choice(None, "", 8, "Pairs drawn from each clip, half of them in sync.", min=2)
    holdout_time: float = choice(None, "", 1.0, "Measure on this share of every clip only.", min=0.01, max=1.0)
    holdout_at: float = choice(None, "", 0.5, "Where that share is: 0 at the beginning, 1 at the end.", min=0, max=1)
    holdout_people: str = choice(
        None, "", "", "Leave out recordings with these name prefixes.", "NAMES", show_default=False
    )
    only: str = choice(None, "", "", "Only recordings with these prefixes (anna,ben).", "NAMES", show_default=False)
    min_shift: int = choice(None, "", 1, "Smallest shift of a shifted pair, in frames.", min=1)
    seed: int = choice(None, "", 1247, "The same seed draws the same pairs.")


@app.command("syncnet-accuracy")
@expand_options
def accuracy(
    net: Annotated[str, typer.Argument(metavar="NET", help="A StableSyncNet: a file, or a registered name.")],
    prepared: Annotated[
        Path, typer.Argument(help="A folder that `latentsync prepare` made, a file list, or a folder of aligned clips.")
    ],
    options: PairOptions,
    output: OutputOptions,
    vae: VaeName = None,
    device: Device = "auto",
) -> None:
    """Accuracy of a SyncNet on pairs of frames and audio, half of them shifted within their clip.

    At threshold 0.5, and at the threshold that is best on every second clip,
    measured on the others.

    \b
    After training with --holdout-time 0.25 --holdout-people anna,ben, on
    the held-out time, then on the held-out people:
      latentsync eval syncnet-accuracy NET DATA --holdout-time 0.25 \\
          --holdout-people anna,ben
      latentsync eval syncnet-accuracy NET DATA --only anna,ben
    """
    from ..dataset import find_clips, holdout_part
    from ..evaluation.charts import draw_accuracy
    from ..evaluation.report import accuracy_rows
    from ..evaluation.syncnet_accuracy import syncnet_accuracy

    output.check()
    loaded, loaded_vae = SyncNetOptions(net, vae, device).load()
    assert loaded is not None
    only, left_out = _names(options.only), _names(options.holdout_people)
    part = holdout_part(options.holdout_time, options.holdout_at)
    wanted = (c for c in find_clips(prepared) if (not only or c.is_of(only)) and not c.is_of(left_out))
    clips = [replace(clip, part=part) for clip in wanted]
    if not clips:
        raise UserError(f"{prepared} has no recording that --only and --holdout-people leave; check the names.")
    drawing = {name: getattr(options, name) for name in ("seed", "pairs", "min_shift")}
    with _bars(title="clips") as on_progress:
        found = syncnet_accuracy(loaded, clips, **drawing, vae=loaded_vae, on_progress=on_progress)
    content = {"net": net, "prepared": str(prepared)} | asdict(options) | found.as_dict()
    title, skipped = f"{net} on {prepared}", list(found.skipped.items())
    Findings(title, (), accuracy_rows(found), skipped, content, lambda: draw_accuracy(found, title)).show(output)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _each(
    names: Sequence[str], skipped: dict[str, str], run: "Callable[[str, FaceFinder, ProgressCallback], Result]"
) -> "tuple[list[Result], dict[str, str]]":
    """One of several clips that cannot be used is skipped."""
    results: list[Result] = []
    with _finder() as finder:
        for name in names:
            try:
                with _bars(title=name) as on_progress:
                    results.append(run(name, finder, on_progress))
            except UserError as error:
                if len(names) == 1:
                    raise
                skipped[name] = str(error)
    if not results:
        raise UserError(f"None of the clips could be measured: {next(iter(skipped.values()), 'there are none')}")
    return results, skipped


def _findings(results: "Sequence[Result]", skipped: dict[str, str], networks: "Networks") -> Findings:
    from ..evaluation import charts, report

    summary = report.summarize(results, skipped, networks.frechets)
    not_measured = [*report.skipped_rows(results), *summary.skipped.items()]
    content = {"clips": [r.as_dict() for r in results], "summary": summary.as_dict()}
    if len(results) > 1:
        rows = report.summary_rows(summary)
        return Findings(f"{len(results)} clips", _MANY, rows, not_measured, content, lambda: charts.draw_many(results))
    (one,) = results
    rows = [*report.rows(one), *report.frechet_rows(summary)]
    draw = (lambda: charts.draw_comparison(one)) if one.curves else (lambda: charts.draw_many(results))
    return Findings(f"{one.name}: {one.frames} frames", _ONE, rows, not_measured, content, draw)


def load_networks(
    options: SyncNetOptions,
    quality: QualityOptions,
    metrics: MetricOptions = MetricOptions(),
    sets: SetOptions = SetOptions(),
) -> "Networks":
    from ..evaluation.image_metrics import FVD_FRAMES, Frechet
    from ..evaluation.measure import Networks
    from ..evaluation.networks import Lpips, Network, Quality, fid_network, fvd_network
    from ..models.device import pick_device

    device = pick_device(options.device)
    return Networks(
        *options.load(),
        Lpips(metrics.lpips, device) if metrics.lpips else None,
        Network(metrics.identity_network, device) if metrics.identity_network else None,
        Frechet(fid_network(sets.fid_network, device)) if sets.fid_network else None,
        Frechet(fvd_network(sets.fvd_network, device), FVD_FRAMES, batch=1) if sets.fvd_network else None,
        Quality(quality.quality_network, device) if quality.quality_network else None,
    )


def _finder() -> "FaceFinder":
    from ..face.detect import FaceFinder
    from ..weights.registry import find

    return FaceFinder(find("face_landmarker.task"))
