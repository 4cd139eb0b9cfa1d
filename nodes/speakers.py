"""LatentSync: Speakers, for several people of one clip."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from comfy_api.latest import io

from ..latentsync.errors import UserError
from ..latentsync.pipeline import Speaker
from ..latentsync.settings import Settings, check_face
from ..latentsync.timeline import Cut, typed_seconds
from . import host, inputs
from .images import speech_of
from .lipsync import common_inputs, file_inputs, lora_inputs, model_inputs, outputs, streamed, times

FEWEST, MOST = 2, 6
"""Speakers of one node; LatentSync: Video is for one."""
FACES = ("left", "right")
"""Of the first ones. Those after them are numbers of a face, which a user will set."""


class LatentSyncSpeakers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        who, more = host.growing(
            "speakers", FEWEST, MOST, _inputs, "How many people speak, each with a face and a voice of their own."
        )
        return host.schema(
            "dialogue",
            "conversation",
            "two people",
            node_id="LatentSyncSpeakers",
            display_name="LatentSync: Speakers",
            description="Makes several people in a video speak, each with a voice of their own, in one pass from file"
            " to file. A mouth moves only during its own voice; the voices are mixed into the video's audio.",
            inputs=[
                io.MultiType.Input(
                    "video", [io.Video, io.Image], tooltip="The video, or a single picture to turn into a video."
                ),
                *who,
                *common_inputs(extra=file_inputs()),
                inputs.silence(),
                inputs.spans(),
                inputs.no_face(),
                inputs.mode(draft=True),
                inputs.encoder(),
                *inputs.lora(),
                *more,
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            enable_expand=True,
            is_output_node=True,
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        video: Any,
        checkpoint: str,
        speakers: Any,
        save_to: str,
        filename_prefix: str,
        resolution: int = 0,
        start: float = 0.0,
        duration: float = 0.0,
        **rest: Any,
    ) -> io.NodeOutput:
        own = {name: rest.pop(name, None) for name in ("model", "vae", "audio_encoder")}
        lora = lora_inputs(rest, own["model"])
        asked = host.grown("speakers", speakers, rest)
        people, settings = _people(asked), Settings(**inputs.BROWSERS | rest)
        if any(part is None for part in own.values()):
            graph = host.graph()
            use = {"video": video, **model_inputs(graph, checkpoint, resolution, lora, **own), **rest}
            use |= {name if name == "speakers" else f"speakers.{name}": value for name, value in asked.items()}
            place = {"checkpoint": checkpoint, "save_to": save_to, "filename_prefix": filename_prefix}
            cut = {"resolution": resolution, "start": start, "duration": duration}
            node = graph.node("LatentSyncSpeakers", **place, **cut, **use)
            return io.NodeOutput(node.out(0), node.out(1), expand=graph.finalize())
        prefix = filename_prefix if save_to == "output" else None
        return streamed(cls.hidden, video, _voices(people), own, settings, Cut(*times(start, duration)), prefix)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> list[float]:
        return inputs.files_changed(**given)


def _inputs(number: int) -> list[Any]:
    face = FACES[number - 1] if number <= len(FACES) else str(number - 1)
    return [
        io.Audio.Input(f"voice_{number}", display_name=f"voice {number}", tooltip=f"What speaker {number} says."),
        io.String.Input(
            f"face_{number}",
            display_name=f"face {number}",
            default=face,
            tooltip='Which face: "largest", "left", "right", a number from the preview of Find Faces, or "x,y,frame",'
            " a point on the face in pixels, in that frame (from 0).",
        ),
        io.Float.Input(
            f"start_{number}",
            display_name=f"start {number}",
            default=0.0,
            min=-1.0,
            max=86400.0,
            step=0.01,
            tooltip="When this voice begins, in seconds of the video. -1: when the voice before it has ended.",
        ),
    ]


@dataclass(frozen=True)
class _Person:
    """name: of the input with the voice, an AUDIO. start: in seconds of the video."""

    name: str
    face: str
    voice: Any
    start: Fraction


def _people(asked: dict[str, Any]) -> list[_Person]:
    """Who speaks when, from the values of the inputs."""
    people: list[_Person] = []
    end = Fraction(0)
    for number in range(1, int(asked["speakers"]) + 1):
        name, face, voice = f"voice_{number}", asked[f"face_{number}"], asked.get(f"voice_{number}")
        if voice is None:
            raise UserError(f"Speaker {number} has no voice; connect a recording to {name}, or set speakers to fewer.")
        check_face(face)
        waveform, rate = speech_of(voice)
        start = typed_seconds(asked[f"start_{number}"])
        people.append(_Person(name, face, voice, end if start < 0 else start))
        end = people[-1].start + Fraction(waveform.shape[-1], rate)
    return people


@contextmanager
def _voices(people: Sequence[_Person]) -> Iterator[list[Speaker]]:
    """The voices as temporary files."""
    with ExitStack() as stack:
        files = [stack.enter_context(host.sound_file(one.voice, one.name)) for one in people]
        yield [Speaker(one.face, str(file), one.start) for one, file in zip(people, files, strict=True)]
