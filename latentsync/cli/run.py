"""`latentsync run`: one face, one speech, one video."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings import Settings
from .options import FileOptions, InputOptions, ModelOptions, SamplingOptions
from .parameters import expand_options

if TYPE_CHECKING:
    from ..pipeline import Report
    from ..weights.bundle import Models


@expand_options
def run(files: InputOptions, sampling: SamplingOptions, file: FileOptions, machine: ModelOptions) -> None:
    """Make the face of a video or a picture say a speech.

    \b
    Make a picture speak, with the built-in model:
      latentsync run -i face.png -a speech.wav -o talking.mp4

    \b
    Dub a video with LatentSync 1.5 (get it with: latentsync download 1.5):
      latentsync run -v clip.mp4 -a speech.wav -o dubbed.mp4 -c 1.5

    \b
    The person on the left, at the video's length, with a report and a contact sheet:
      latentsync run -v two.mp4 -a speech.wav -o out.mp4 --face left \\
          --fit silence --json out.json --sheet out.png
    """
    from ..evaluation.span_chart import span_chart
    from .console import show_json, show_result, write_json
    from .contact_sheet import write_picture

    settings = Settings(**asdict(sampling), **asdict(file), watermark=files.watermark, audio_track=files.audio_track)
    source, voices = _source(files.video, files.image), _voices(files)
    for sound in voices:
        _check_names(source, sound, files)
        _check_media(source, sound, still=files.image is not None)
    start = time.perf_counter()
    with _models(machine) as models:
        loading = time.perf_counter() - start
        report = _lipsync(source, files, models, settings)
        if files.sheet is not None:
            _draw_sheet(files.out, files.sheet, models, settings)
        if files.timeline is not None:
            write_picture(files.timeline, span_chart(report.spans, report.frames, report.fps))
        facts = _facts(report, source, files.audio, models, loading)
    on_screen = str(files.json) == "-"
    show_result(report, facts, files.sheet, to_stderr=on_screen)
    if files.json is not None:
        show_json(facts) if on_screen else write_json(files.json, facts)


def _source(video: Path | None, image: Path | None) -> Path:
    source = video or image
    if source is None or (video and image):
        raise UserError("Give one face to make speak: either --video or --image.")
    return source


def _voices(files: InputOptions) -> list[Path | None]:
    """All files with a voice; None is the video's own sound."""
    from ..audio.speakers import Speaker

    if not files.speaker:
        return [files.audio]
    if files.audio is not None:
        raise UserError("Give either --audio or --speaker: with speakers, each names a voice.")
    return [Path(Speaker.parse(text).voice) for text in files.speaker]


def _check_names(source: Path, audio: Path | None, files: InputOptions) -> None:
    from .console import check_writable

    out = files.out
    for path in (source, audio):
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"{out} is both input and output; give --out another name.")
    for name, picture in (("--sheet", files.sheet), ("--timeline", files.timeline)):
        if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise UserError(f"{name} is {picture}; its name must end in .png or .jpg.")
    for path in (files.json, files.sheet, files.timeline):
        check_writable(path)


def _check_media(source: Path, audio: Path | None, still: bool) -> None:
    """What can be found wrong in a moment, before large weights are loaded; the engine looks closer."""
    from ..media.audio_track import has_audio
    from ..media.image import is_animation, is_image
    from ..media.probe import probe

    if is_image(source):
        pass
    elif not still or is_animation(source):
        probe(source)
    elif source.is_file():
        raise UserError(f"{source} is not a picture; give a PNG, JPEG, WebP, TIFF or HEIC, or a video with --video.")
    else:
        raise UserError(f"There is no picture {source}; give the path of one.")
    if audio is not None and not has_audio(audio):
        raise UserError(f"{audio} has no sound in it; give a recording of speech.")


@contextmanager
def _models(options: ModelOptions) -> Iterator["Models"]:
    from .console import waiting

    with waiting(f"loading {options.checkpoint}"):
        from ..models.device import pick_device, pick_dtype
        from ..weights.bundle import load_models

        device = pick_device(options.device)
        given = asdict(options) | {"device": device, "dtype": pick_dtype(options.dtype, device)}
        models = load_models(given.pop("checkpoint"), **given)
    with models:
        yield models


def _lipsync(source: Path, files: InputOptions, models: "Models", settings: Settings) -> "Report":
    import torch

    from ..audio.speakers import Speaker
    from ..pipeline import lipsync_file
    from ..timeline import Cut, typed_seconds
    from .console import stages

    try:
        with stages() as on_step:
            return lipsync_file(
                source,
                [Speaker.parse(text) for text in files.speaker] or files.audio,
                files.out,
                models=models,
                settings=settings,
                cut=Cut(typed_seconds(files.start), typed_seconds(files.duration) or None),
                resume=True,
                cache=files.cache,
                on_step=on_step,
            )
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
    return {
        "video": str(source),
        "audio": str(audio or source),
        **facts,
        "timings": {"load": round(loading, 3)} | facts["timings"],
        "resolution": models.resolution,
        "device": str(models.device),
        "dtype": short_name(models.dtype),
        "torch": torch.__version__,
    }
