"""`python -m recipes.nano`: the recipe of the built-in model, one command per stage."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich import print as show

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Media = Annotated[Path, typer.Argument(help="Folder with clips/ (docs/nano.md lists them).")]
Run = Annotated[Path, typer.Argument(help="Folder of the run: prepared clips, checkpoints, logs.")]


@app.command()
def prepare(media: Media, run: Run, resolution: int = 160) -> None:
    """Crop faces, encode speech, measure mouth opening; prepared clips are kept."""
    from latentsync.face.detect import FaceFinder
    from latentsync.weights.registry import find
    from latentsync.weights.whisper_files import load_whisper

    from .data import prepare
    from .export import DELAYS, clip_paths

    with FaceFinder(find("face_landmarker.task")) as finder:
        paths, whisper = clip_paths(media), load_whisper("tiny.en")
        prepare(paths, run / "clips", finder, whisper, resolution=resolution, delays=DELAYS, on_clip=show)


@app.command()
def vae(run: Run, steps: int | None = None, init: Path | None = None) -> None:
    """Train the VAE, or resume. --init: start from the weights of another run."""
    from .data import load_clips
    from .vae import VAETraining, train_vae

    settings = VAETraining() if steps is None else VAETraining(steps=steps)
    train_vae(load_clips(run / "clips"), run, settings, init=init, on_report=show)


@app.command()
def unet(run: Run, steps: int | None = None) -> None:
    """Encode all clips with the trained VAE, then train the U-Net, or resume."""
    from .data import encode_clips, load_clips
    from .export import trained_vae
    from .unet import UNetTraining, train_unet

    settings = UNetTraining() if steps is None else UNetTraining(steps=steps)
    clips = load_clips(run / "clips")
    encoder = trained_vae(run / "vae.pt", clips)
    variants = encode_clips(
        clips,
        encoder.encode,
        resolution=settings.resolution,
        variants=settings.variants,
        seed=settings.seed,
        on_variant=lambda variant: show(f"variant {variant} encoded"),
    )
    train_unet(variants, clips, run, settings, encoder, on_report=show)


@app.command()
def export(run: Run, out: Path) -> None:
    """Write the averaged U-Net and VAE as one fp16 file."""
    from .data import load_clips
    from .export import export, trained_vae

    clips = load_clips(run / "clips")
    show(f"wrote {export(trained_vae(run / 'vae.pt', clips), run / 'unet.pt', out, clips)}")


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

    from latentsync.weights.bundle import load_models

    from .evaluate import HeldOut, Score, score_all, strip, write_videos
    from .export import CLIPS, STRANGERS, clip_paths

    strips: list[np.ndarray] = []

    def on_clip(score: Score, clip: HeldOut, own: np.ndarray, wrong: np.ndarray) -> None:
        show(score)
        strips.append(strip(clip, own, wrong))
        if videos:
            write_videos(videos, clip, own)

    paths = [path for path in clip_paths(media, STRANGERS if strangers else CLIPS) if path.match(only)]
    with load_models(checkpoint) as models:
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


if __name__ == "__main__":
    app()
