"""A request as a workflow in ComfyUI's API form, and what its run tells."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..face.spans import Span
from ..settings import Settings
from ..timeline import Cut

if TYPE_CHECKING:
    from ..audio.speakers import Speaker
    from ..comfy_client.prompt import Prompt

VIDEO_NODE, SPEAKERS_NODE, SHOW_TEXT, RESULT = "LatentSyncVideo", "LatentSyncSpeakers", "PreviewAny", "Result"
REPORT = "5"
"""Id of the node that shows the report; older versions of ComfyUI have none that could."""
NEWER = {
    "watermark": "add a watermark",
    "start": "use a part of a video",
    "duration": "use a part of a video",
    "codec": "choose how the video is stored",
    "quality": "choose how the video is stored",
    "encoder": "encode with a graphics card",
    "strip_metadata": "remove the source's metadata",
    "audio_track": "choose an audio track",
    "silence": "relax the mouth in pauses",
    "spans": "sync only some parts",
    "points": "follow a face marked by hand",
    "mode": "use fewer steps",
}
"""Inputs that not every version of the node has, and what for. Sent only where they differ from UNSAID."""
UNSAID = Settings(codec="h264")
"""What the node does of itself."""


@dataclass(frozen=True)
class LipSyncRequest:
    """voice None: the clip's own sound. is_image: face is a still image. out: the file to write, its ending as
    ending_for(settings.codec, face) has it. cut: what is used of a clip. others: more people, beside settings.face
    with its voice. lora: "FILE:STRENGTH" for each."""

    face: Path
    voice: Path | None
    out: Path
    checkpoint: str
    settings: Settings
    is_image: bool = False
    cut: Cut = field(default_factory=Cut)
    others: "tuple[Speaker, ...]" = ()
    lora: tuple[str, ...] = ()


def prompt_for(request: LipSyncRequest) -> "Prompt":
    """The request as a workflow in API form. The files are uploaded and set by the client that queues it."""
    settings = request.settings
    loader, file_input = ("LoadImage", "image") if request.is_image else ("LoadVideo", "file")
    names = ("fit", "seed", "steps", "guidance", "solver", "still_fps", "window_batch")
    inputs: dict[str, Any] = {"video": ["1", 0], "checkpoint": request.checkpoint}
    inputs |= {name: getattr(settings, name) for name in names}
    inputs |= {"save_to": "temp", "filename_prefix": "video/LatentSync"}
    changed = [name for name in NEWER if getattr(settings, name, None) != getattr(UNSAID, name, None)]
    inputs |= {name: getattr(settings, name) for name in changed}
    if request.cut.start:
        inputs["start"] = float(request.cut.start)
    if request.cut.duration is not None:
        inputs["duration"] = float(request.cut.duration)
    kind = SPEAKERS_NODE if request.others else VIDEO_NODE
    prompt: Prompt = {
        "1": {"class_type": loader, "inputs": {file_input: ""}, "_meta": {"title": "Face"}},
        "3": {"class_type": kind, "inputs": inputs, "_meta": {"title": "Lip sync"}},
    }
    if settings.codec == UNSAID.codec:
        save = {"video": ["3", 0], "filename_prefix": "video/LatentSync", "format": "auto", "codec": "auto"}
        prompt["4"] = {"class_type": "SaveVideo", "inputs": save, "_meta": {"title": RESULT}}
    else:  # Save Video would put it into an .mp4, which does not hold all of these
        inputs["save_to"] = "output"
        prompt["3"]["_meta"] = {"title": RESULT}
    if request.voice is not None:
        inputs.pop("audio_track", None)
        prompt["2"] = _voice("Voice")
    if request.others:
        _add_others(prompt, inputs, request)
        return prompt
    inputs["face"] = settings.face
    if request.voice is not None:
        inputs["audio"] = ["2", 0]
    return prompt


def _voice(title: str) -> Any:
    return {"class_type": "LoadAudio", "inputs": {"audio": ""}, "_meta": {"title": title}}


def _add_others(prompt: "Prompt", inputs: dict[str, Any], request: LipSyncRequest) -> None:
    """All people's voices, in the inputs of the node for several."""
    people = [("2", request.settings.face, Fraction(0))]
    for number, other in enumerate(request.others, 2):
        people.append((f"2{number}", other.face, other.start))
        prompt[f"2{number}"] = _voice(f"Voice {number}")
    inputs["speakers"] = str(len(people))
    for number, (node, face, start) in enumerate(people, 1):
        own = {"voice": [node, 0], "face": face, "start": float(start)}
        inputs |= {f"speakers.{name}_{number}": value for name, value in own.items()}


def with_report(prompt: "Prompt") -> "Prompt":
    """The same, and what the node says of its run as a text."""
    show = {"class_type": SHOW_TEXT, "inputs": {"source": ["3", 1]}, "_meta": {"title": "Report"}}
    return prompt | {REPORT: show}


@dataclass(frozen=True)
class Told:
    """What a server's report says, as far as it is shown; as pipeline.Report has it."""

    fps: Fraction
    spans: tuple[Span, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, shown: Any) -> "Told | None":
        """From what the node REPORT shows, {"text": [JSON]}; None where that is no report."""
        with suppress(KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            facts = json.loads(shown["text"][0])
            fps = 1 / (1 / Fraction(facts["fps"]))  # not 0
            return cls(fps, tuple(map(_span, facts.get("spans", []))), tuple(map(str, facts.get("notes", []))))
        return None


def _span(facts: Any) -> Span:
    return Span(int(facts["start"]), int(facts["stop"]), str(facts["state"]), str(facts["reason"]), facts.get("face"))
