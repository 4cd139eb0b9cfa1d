"""`python -m recipes.nano`: the recipe of the built-in model, one command per stage."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import print as show

if TYPE_CHECKING:
    from latentsync.models.vae import VAE

    from .data import Person
    from .hearing import Hearing

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Media = Annotated[Path, typer.Argument(help="Folder with clips/ and portraits/ (docs/nano.md lists them).")]
Run = Annotated[Path, typer.Argument(help="Folder of the run: prepared people, scenes, checkpoints, logs.")]
Taesd = Annotated[str, typer.Option(help="TAESD: a registered name, or a folder with its two files.")]


def _original(taesd: str, **options: Any) -> "VAE":
    """TAESD as it is published; its name alone stands for the built-in model's, whose decoder is tuned already."""
    from latentsync.weights.registry import find
    from latentsync.weights.vae_files import load_vae

    return load_vae(find(taesd) if taesd == "taesd" else taesd, **options)


def _hearing(people: "list[Person]") -> "Hearing":
    from latentsync.weights.whisper_files import load_whisper

    from .hearing import Hearing, silent_tokens
    from .unet import Shapes

    return Hearing(people, Shapes(people), silent_tokens(load_whisper("tiny.en")))


@app.command()
def prepare(media: Media, run: Run, processes: int = 2) -> None:
    """Crop faces, find their meshes, encode speech; what is prepared already is kept."""
    from .data import prepare

    prepare(media, run / "people", processes=processes, on_item=show)


@app.command()
def scenes(
    run: Run,
    taesd: Taesd = "taesd",
    files: int = 128,
    first: int = 0,
    stride: int = 1,
    seed: int = 1247,
    portraits: float = 0.6,
) -> None:
    """Make puppets and encode them, 16 scenes a file. --first, --stride: share the work among several processes.
    --portraits: share of scenes with stills; the others take frames of clips."""
    import torch

    from .data import load_people
    from .scenes import write_scenes

    vae, people = _original(taesd, dtype=torch.bfloat16), load_people(run / "people")
    encode = torch.inference_mode()(vae.encode)
    numbers = write_scenes(
        people, encode, run / "scenes", first=first, last=files, stride=stride, seed=seed, p_portrait=portraits
    )
    for number in numbers:
        show(f"scenes/{number:05d} written")


@app.command()
def decoder(run: Run, taesd: Taesd = "taesd", steps: int | None = None) -> None:
    """Teach a narrower decoder on the scenes, or resume."""

    from .decoder import DecoderTraining, narrowed, train_decoder

    settings = DecoderTraining() if steps is None else DecoderTraining(steps=steps)
    vae = narrowed(_original(taesd), settings.widths)
    train_decoder(run / "scenes", run, settings, vae, on_report=show)


@app.command()
def unet(run: Run, taesd: Taesd = "taesd", steps: int | None = None) -> None:
    """Train the U-Net, which is told shapes of lips, and the autoencoder's decoder on the scenes, or resume."""

    from .data import load_people
    from .decoder import with_tuned_decoder
    from .unet import UNetTraining, settings_of, train_unet

    settings = settings_of(run / "unet.pt") if (run / "unet.pt").exists() else UNetTraining()
    settings = replace(settings, steps=steps or settings.steps)
    vae = with_tuned_decoder(_original(taesd), run)
    train_unet(run / "scenes", load_people(run / "people"), run, settings, vae, on_report=show)


@app.command()
def again(run: Run, file: Path) -> None:
    """Prepare to train a finished model further by `unet`: on other scenes, say."""
    from .again import start_again
    from .data import load_people
    from .scenes import load_scenes

    people = load_people(run / "people")
    start_again(file, load_scenes(run / "scenes"), people, _hearing(people), run / "unet.pt")


@app.command()
def hearing(run: Run) -> None:
    """Teach the averaged U-Net, which was told shapes, to hear speech."""
    from .data import load_people
    from .hearing import teach_hearing

    teach_hearing(run / "unet.pt", _hearing(load_people(run / "people")), run / "heard.pt")


@app.command()
def export(run: Run, out: Path, taesd: Taesd = "taesd") -> None:
    """Write the U-Net that hears and the autoencoder as one fp16 file."""

    from .data import load_people
    from .export import export

    show(f"wrote {export(_original(taesd), run / 'heard.pt', out, load_people(run / 'people'))}")


@app.command()
def exchange(run: Run, file: Path, out: Path) -> None:
    """Write a finished model again with the decoder of another run."""
    from .export import exchange_decoder

    show(f"wrote {exchange_decoder(file, run / 'unet.pt', out)}")


@app.command()
def evaluate(
    media: Media,
    checkpoint: str = "nano",
    steps: int | None = None,
    guidance: float | None = None,
    only: str = "*",
    strangers: bool = False,
    out: Path | None = None,
    sheet: Path | None = None,
    videos: Path | None = None,
) -> None:
    """Compare the mouth opening made with a clip's own and with another's speech to the true one, on held-out time.

    --only takes a pattern of clip names; --strangers uses people outside the training data. --out writes the scores
    (JSON), --sheet an image of true, own and other, --videos the folders for `latentsync eval compare`.
    """
    import cv2
    import numpy as np

    from latentsync.models.device import pick_dtype
    from latentsync.weights.bundle import load_models

    from .data import CLIPS, STRANGERS, clip_paths
    from .evaluate import HeldOut, Score, score_all, strip, write_videos

    strips: list[np.ndarray] = []

    def on_clip(score: Score, clip: HeldOut, own: np.ndarray, wrong: np.ndarray) -> None:
        show(score)
        strips.append(strip(clip, own, wrong))
        if videos:
            write_videos(videos, clip, own)

    paths = [path for path in clip_paths(media, STRANGERS if strangers else CLIPS) if path.match(only)]
    with load_models(checkpoint, dtype=pick_dtype("auto", "cpu")) as models:
        defaults = models.defaults
        guidance = defaults.guidance if guidance is None else guidance
        settings = replace(defaults, steps=steps or defaults.steps, guidance=guidance)
        scores = score_all(paths, models, settings, on_clip=on_clip)
    medians = {name: float(np.median([getattr(s, name) for s in scores])) for name in ("own", "other", "sharpness")}
    show({"clips": len(scores), **medians})
    if out:
        used = {"steps": settings.steps, "guidance": settings.guidance}
        out.write_text(json.dumps({**medians, **used, "clips": [asdict(s) for s in scores]}, indent=1))
    if sheet:
        cv2.imwrite(str(sheet), np.concatenate(strips)[..., ::-1])


@app.command()
def stills(
    media: Media,
    run: Run,
    checkpoint: str = "nano",
    steps: int | None = None,
    guidance: float | None = None,
    out: Path | None = None,
    sheet: Path | None = None,
    card: Path | None = None,
) -> None:
    """Let stills of held-out people say held-out speech, and compare with puppets of them (needs what prepare wrote).

    --out writes the scores (JSON), --sheet pictures of truth and made, --card
    a picture of all of them at five moments, as in docs/nano.md.
    """
    import cv2
    import numpy as np

    from latentsync.models.device import pick_dtype
    from latentsync.weights.bundle import load_models
    from latentsync.weights.registry import ASSETS

    from .data import load_people
    from .strangers import StillEvaluation, talks

    people = load_people(run / "people")
    with load_models(checkpoint, dtype=pick_dtype("auto", "cpu")) as models:
        chosen = models.defaults
        settings = replace(chosen, steps=steps or chosen.steps, guidance=guidance or chosen.guidance)
        evaluation = StillEvaluation(people, talks(media, people), models, settings)
        scores = []
        for number in range(len(evaluation.portraits())):
            scores.append(evaluation.score(number))
            show(scores[-1])
        if card:
            astronaut = np.asarray(cv2.imread(str(ASSETS / "astronaut.jpg")))[..., ::-1]
            cv2.imwrite(str(card), evaluation.sheet([astronaut])[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    names = ("own", "other", "sharpness", "ssim", "color", "pause", "wide", "fast")
    medians = {name: float(np.median([getattr(s, name) for s in scores])) for name in names}
    show({"portraits": len(scores), **medians})
    if out:
        out.write_text(json.dumps({**medians, "portraits": [asdict(s) for s in scores]}, indent=1))
    if sheet:
        cv2.imwrite(str(sheet), np.concatenate(evaluation.strips)[..., ::-1])


if __name__ == "__main__":
    app()
