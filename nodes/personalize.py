"""LatentSync: Personalize, which trains a model of one person."""

import base64
import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..latentsync.errors import FootageError, UserError
from ..latentsync.media.journal import fingerprint as key_of
from ..latentsync.settings import check_face
from ..latentsync.training.personal.footage import BEST, ENOUGH
from ..latentsync.training.personal.run import CONSENT, Request, personalize
from ..latentsync.weights.files import our_metadata, read_tensors
from . import host, inputs
from .images import frames_of, rate_of
from .media import check_sound

SHEET = re.compile(r'<img alt="Moments [^"]*" src="data:image/jpeg;base64,([^"]+)"')
"""The picture of moments on the page."""


class LatentSyncPersonalize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "train",
            "training",
            "lora",
            "personal model",
            node_id="LatentSyncPersonalize",
            display_name="LatentSync: Personalize",
            description="Trains a model of one person from a minute of them speaking to the camera, so that their mouth"
            " becomes as sharp as in the video. Writes a LoRA to output/loras, which can be chosen as lora on"
            " LatentSync: Load Model, Lip Sync, Video and Speakers. Takes minutes; after Cancel or a crash, run the"
            " same workflow again to continue.",
            inputs=[
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip=f"The person speaking, with sound: {ENOUGH:.0f} s at least, {BEST:.0f} s are good.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="The frames, instead of a video. Also needs audio and fps."
                ),
                io.Audio.Input("audio", optional=True, tooltip="What the person says in images."),
                inputs.fps("of images, from Get Video Components. Not needed for a video."),
                io.String.Input(
                    "name", default="me", tooltip="Of the person: the LoRA becomes output/loras/NAME.safetensors."
                ),
                inputs.checkpoint(),
                io.Boolean.Input(
                    "consent",
                    default=False,
                    tooltip="Switch it on if this is you, or someone who has agreed to a model of their face.",
                ),
                io.Float.Input(
                    "minutes",
                    default=Request.minutes,
                    min=0.0,
                    max=10_000.0,
                    step=1.0,
                    tooltip="Train for at most this long. 0: all steps; training stops earlier when nothing improves.",
                ),
                inputs.face(),
                *_advanced(),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, fps: float, name: str, checkpoint: str, consent: bool, video: Any = None, images: Any = None,
        audio: Any = None, **rest: Any,
    ) -> io.NodeOutput:  # fmt: skip
        if not consent:
            raise UserError(f"{CONSENT} If that is so, switch consent on.")
        check_face(rest["face"])
        files = host.PersonalFiles.of(name)
        model, file = host.training_checkpoint(checkpoint)
        rest = {ours.removeprefix("training_"): value for ours, value in rest.items()}
        with _footage(video, images, audio, fps) as clip:
            check_sound(clip, None)
            known = key_of(rest, clip, file)
            if not files.is_made(known):
                ask = Request([clip], files.work, model, files.lora.stem, device=host.training_device(), **rest)
                with host.training(host.Stages(cls.hidden.unique_id)) as report:
                    _personalize(ask, report)
                files.keep(known)
        return _output(files)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> list[float]:
        return inputs.files_changed(**given)


def _personalize(request: Request, report: Any) -> None:
    try:
        personalize(request, report, report.should_stop)
    except FootageError as error:
        raise UserError(f"{error} To train all the same, switch anyway on; face says who is meant.") from error


def _advanced() -> list[Any]:
    # not "seed": the front end would draw another one for each run, which would train anew
    return [
        host.advanced(
            io.Boolean.Input(
                "anyway",
                optional=True,
                default=Request.anyway,
                tooltip="Train although something is wrong with the footage; what that is, is then only logged.",
            )
        ),
        host.advanced(
            io.Int.Input(
                "training_steps",
                optional=True,
                default=Request.steps,
                min=0,
                max=100_000,
                step=1,
                tooltip="Train at most this number of steps. 0: what suits the checkpoint.",
            )
        ),
        host.advanced(
            io.Int.Input(
                "training_seed",
                optional=True,
                default=Request.seed,
                min=0,
                max=2**63 - 1,
                step=1,
                tooltip="The same number gives the same LoRA from the same footage.",
            )
        ),
    ]


def _outputs() -> list[Any]:
    return [
        io.Custom("LORA_MODEL").Output(
            display_name="lora_model",
            tooltip="The LoRA, for ComfyUI's Load LoRA Model and Save LoRA Weights. These change the U-Net only.",
        ),
        io.AnyType.Output(
            display_name="lora",
            tooltip="The LoRA's file name: connect it to lora of Load Model, Lip Sync, Video or Speakers.",
        ),
        io.Image.Output(
            display_name="before_after",
            tooltip="Moments that it was not trained on. Rows: as filmed, the checkpoint alone, with the LoRA.",
        ),
        io.String.Output(
            display_name="report",
            tooltip="JSON: the LoRA's metadata, with figures before and after; and the page with video and charts.",
        ),
    ]


def _footage(video: Any, images: Any, audio: Any, fps: float) -> AbstractContextManager[Path]:
    if (video is None) == (images is None):
        got = "Nothing" if video is None else "Both video and images"
        raise UserError(f"{got} to learn from: connect either a VIDEO, or images with audio and fps.")
    if video is not None and audio is not None:
        raise UserError("audio is connected to a video, which has its own audio; disconnect one of them.")
    if video is not None:
        return host.steady_file(video)
    if audio is None:
        raise UserError("images came without audio; connect what the person says.")
    frames_of(images)
    return host.steady_file(None, images, audio, rate_of(fps))


def _output(files: host.PersonalFiles) -> io.NodeOutput:
    tensors = {name: tensor.clone() for name, tensor in read_tensors(files.lora).items()}
    report = _report(files, our_metadata(files.lora))
    sheet = _sheet(files.page)
    if sheet is None:
        picture: Any = host.blocked_output(f"The page {files.page.name} with the images is gone.")
        return io.NodeOutput(tensors, files.lora.name, picture, report)
    shown = host.preview_picture((sheet[0] * 255).round().byte().numpy())
    return io.NodeOutput(tensors, files.lora.name, sheet, report, ui={"images": [shown]})


def _report(files: host.PersonalFiles, metadata: Mapping[str, str]) -> str:
    figures = {name: json.loads(metadata[name]) for name in ("before", "after") if name in metadata}
    places = {"lora": host.short_text(str(files.lora)), "page": host.short_text(str(files.page))}
    return json.dumps({**metadata, **figures, **places}, indent=2)


def _sheet(page: Path) -> Tensor | None:
    """(1, H, W, 3) of the moments that the page shows; None where it is gone."""
    found = SHEET.search(page.read_text("utf-8")) if page.is_file() else None
    if found is None:
        return None
    picture = Image.open(BytesIO(base64.b64decode(found[1]))).convert("RGB")
    return torch.from_numpy(np.array(picture))[None].float() / 255
