"""Everything in one node: for pictures in memory, and streamed from file to file."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..latentsync.errors import UserError
from ..latentsync.media.encoding import ending_for
from ..latentsync.pipeline import Report, Speaker, lipsync_file
from ..latentsync.settings import Settings
from ..latentsync.timeline import Cut, typed_seconds
from . import host, inputs
from .images import rate_of
from .media import check_sound

RAW = {"rawLink": True}
"""The wire itself comes in, not what flows through it: it is handed on to the nodes that this one stands for."""


def common_inputs(who: Sequence[Any] = (), extra: Sequence[Any] = (), facts: dict[str, Any] | None = None) -> list[Any]:
    """Inputs of all these nodes. who: whose mouth; extra: more of them; facts: of the sockets for models."""
    raw = {"optional": True, "extra_dict": facts}
    return [
        inputs.checkpoint(),
        inputs.resolution(),
        inputs.fit(),
        *who,
        *inputs.sampling(),
        *extra,
        io.Model.Input("model", **raw, tooltip="Instead of the checkpoint's U-Net."),
        io.Vae.Input("vae", **raw, tooltip="Instead of the checkpoint's VAE."),
        io.AudioEncoder.Input("audio_encoder", **raw, tooltip="Instead of the checkpoint's Whisper."),
    ]


def model_inputs(
    graph: Any, checkpoint: str, resolution: int, lora: dict[str, Any], model: Any, vae: Any, audio_encoder: Any
) -> dict[str, Any]:
    """What is connected, and a loader for what is not. lora: the inputs about it."""
    given = {"model": model, "vae": vae, "audio_encoder": audio_encoder}
    if any(part is None for part in given.values()):
        files = {"checkpoint": checkpoint, "resolution": resolution, "dtype": "auto"}
        loader = graph.node("LatentSyncLoader", **files, **lora)
        given = {name: loader.out(i) if part is None else part for i, (name, part) in enumerate(given.items())}
    return given


def lora_inputs(rest: dict[str, Any], model: Any) -> dict[str, Any]:
    """Those about a LoRA, taken out of the values of a node. UserError where a connected MODEL would not get it."""
    given = {name: rest.pop(name) for name in ("lora", "lora_strength") if name in rest}
    if given.get("lora", host.NO_LORA) != host.NO_LORA and model is not None:
        raise UserError(
            f"The LoRA {given['lora']} is for the checkpoint of this node, but a model is connected; choose the LoRA on"
            " the LatentSync: Load Model that this model comes from."
        )
    return given


class LatentSyncLipSync(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncLipSync",
            display_name="LatentSync: Lip Sync",
            description="Makes the face in a video or picture say a speech: everything in one node, for frames in"
            " memory. Replaces the single nodes from Load Model to Composite; with another speech or seed the"
            " faces are not searched for again. For long clips use LatentSync: Video.",
            inputs=[
                io.Image.Input(
                    "images", extra_dict=RAW, tooltip="The frames, or a single picture to turn into a video."
                ),
                io.Audio.Input("audio", extra_dict=RAW, tooltip="The speech; any sample rate and number of channels."),
                inputs.fps("of the images, from Get Video Components; for a single picture, of the result."),
                *common_inputs([inputs.face()], [inputs.keep_out(extra_dict=RAW)], RAW),
                inputs.silence(),
                inputs.points(),
                *inputs.lora(),
                inputs.mode(draft=False),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames with a talking mouth."),
                io.Audio.Output(display_name="audio", tooltip="The speech, as long as the frames."),
                io.Mask.Output(display_name="mask", tooltip="How much of each pixel was repainted, 0 to 1."),
            ],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, images: Any, audio: Any, fps: float, checkpoint: str, **rest: Any) -> io.NodeOutput:
        rate_of(fps)  # known to be wrong before any face is looked for
        graph = host.graph()
        fit, face, points = rest.pop("fit"), rest.pop("face"), rest.pop("points", Settings.points)
        quiet = {"silence": rest.pop("silence", Settings.silence)}
        own = {name: rest.pop(name, None) for name in ("model", "vae", "audio_encoder")}
        lora = lora_inputs(rest, own["model"])
        use = model_inputs(graph, checkpoint, rest.pop("resolution", 0), lora, **own)
        look = {"grow": 0, "feather": 0, "match_color": True, "keep_out": rest.pop("keep_out", None)}
        who = {"face": face, "points": points, "resolution": 0, "preview_frame": 0}
        found = graph.node("LatentSyncFindFaces", images=images, model=use["model"], **who)
        track = {"crops": found.out(0), "face_track": found.out(1)}
        fitted = graph.node("LatentSyncFitLength", images=images, audio=audio, fps=fps, fit=fit, **track, **quiet)
        heard = graph.node("LatentSyncEncodeAudio", audio_encoder=use["audio_encoder"], audio=fitted.out(1), **quiet)
        track = {"crops": fitted.out(2), "face_track": fitted.out(3)}
        asked = graph.node("LatentSyncCondition", vae=use["vae"], audio=heard.out(0), fps=fps, **track)
        cond = {"positive": asked.out(0), "negative": asked.out(1), "latent": asked.out(2)}
        latent = graph.node("LatentSyncSampler", model=use["model"], **cond, **rest)
        crops = graph.node("VAEDecode", samples=latent.out(0), vae=use["vae"])
        track["crops"] = crops.out(0)
        done = graph.node("LatentSyncComposite", images=fitted.out(0), **look, **track)
        return io.NodeOutput(done.out(0), fitted.out(1), done.out(1), expand=graph.finalize())

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> list[float]:
        return inputs.files_changed(**given)


def file_inputs(speech: Sequence[Any] = ()) -> list[Any]:
    """Which part of a file is used, and how the new one is written. speech: the part of a speech."""
    return [
        *inputs.part("start", "duration", "picture", "A video's own audio is cut with it."),
        *speech,
        host.advanced(
            io.Int.Input(
                "still_fps",
                default=Settings.still_fps,
                min=1,
                max=120,
                step=1,
                tooltip="Frames per second of a video made from a picture.",
            )
        ),
        host.advanced(
            io.Int.Input(
                "window_batch",
                default=Settings.window_batch,
                min=1,
                max=64,
                step=1,
                tooltip="Windows of 16 frames computed together: more is faster on a large graphics card and takes"
                " more memory. The result is the same.",
            )
        ),
        inputs.watermark(),
        io.Combo.Input(
            "save_to",
            options=["temp", "output"],
            default="temp",
            tooltip="temp: for Save Video or other nodes after it; the file is deleted when it is no longer needed."
            " output: kept in the output folder.",
        ),
        io.String.Input(
            "filename_prefix",
            default="video/LatentSync",
            tooltip="Name of the file in the output folder, with folders and codes like %date:yyyy-MM-dd%.",
        ),
        *inputs.encoding(),
    ]


def outputs() -> list[Any]:
    return [
        io.Video.Output(display_name="video", tooltip="The talking video, as a file."),
        io.String.Output(
            display_name="report",
            tooltip="JSON: frames, faces, settings, seconds by stage; in spans, how every frame was handled and why.",
        ),
    ]


def _audio_track() -> Any:
    return host.advanced(
        io.Int.Input(
            "audio_track",
            optional=True,
            default=Settings.audio_track,
            min=-1,
            max=63,
            step=1,
            tooltip="Which audio track of the video to use, from 0. -1: its default track, or the first with sound."
            " Does not apply to a connected speech.",
        )
    )


class LatentSyncVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        speech = inputs.part("audio_start", "audio_duration", "speech", "For a connected speech.")
        return host.schema(
            node_id="LatentSyncVideo",
            display_name="LatentSync: Video",
            description="Makes the face in a video say a speech, streamed from file to file: memory use does not grow"
            " with the clip's length. Frame rate and size are unchanged. With save_to: output, no other node is"
            " needed after it.",
            inputs=[
                io.MultiType.Input(
                    "video", [io.Video, io.Image], tooltip="The video, or a single picture to turn into a video."
                ),
                io.Audio.Input("audio", optional=True, tooltip="The speech. If not connected: the video's own audio."),
                *common_inputs([inputs.face()], [*file_inputs(speech), _audio_track()]),
                inputs.silence(),
                inputs.spans(),
                inputs.points(),
                inputs.no_face(),
                inputs.mode(draft=True),
                inputs.encoder(),
                *inputs.lora(),
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
        save_to: str,
        filename_prefix: str,
        resolution: int = 0,
        audio: Any = None,
        start: float = 0.0,
        duration: float = 0.0,
        audio_start: float = 0.0,
        audio_duration: float = 0.0,
        **rest: Any,
    ) -> io.NodeOutput:
        own = {name: rest.pop(name, None) for name in ("model", "vae", "audio_encoder")}
        lora = lora_inputs(rest, own["model"])
        cut = Cut(*times(start, duration), *times(audio_start, audio_duration))
        if audio is not None:
            rest["audio_track"] = Settings.audio_track  # a connected speech has one track
        settings = Settings(**inputs.BROWSERS | rest)
        if any(part is None for part in own.values()):
            graph = host.graph()
            use = {"video": video, "audio": audio, **model_inputs(graph, checkpoint, resolution, lora, **own), **rest}
            place = {"checkpoint": checkpoint, "save_to": save_to, "filename_prefix": filename_prefix}
            spans = {"start": start, "duration": duration, "audio_start": audio_start, "audio_duration": audio_duration}
            node = graph.node("LatentSyncVideo", resolution=resolution, **place, **spans, **use)
            return io.NodeOutput(node.out(0), node.out(1), expand=graph.finalize())
        prefix = filename_prefix if save_to == "output" else None
        return streamed(cls.hidden, video, host.sound_file(audio), own, settings, cut, prefix)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> list[float]:
        return inputs.files_changed(**given)


def streamed(
    hidden: Any,
    video: Any,
    speech: AbstractContextManager[Path | Sequence[Speaker] | None],
    own: dict[str, Any],
    settings: Settings,
    cut: Cut,
    prefix: str | None,
) -> io.NodeOutput:
    """The video, made by these networks. prefix: its name in the output folder; None: a temporary file."""
    known = host.belongings(video)
    known["model"] = own["model"]
    models = host.engine_models(*own.values())
    with (
        host.picture_file(video) as source,
        speech as sound,
        host.new_video(prefix, source, ending_for(settings.codec, source)) as path,
    ):
        if sound is None:
            check_sound(source, sound)
        report = lipsync_file(
            source,
            sound,
            path,
            models=models,
            settings=settings,
            cut=cut,
            tracks=known.setdefault(("tracks", cut.start, settings.points), {}),
            metadata=None if prefix is None else host.workflow_metadata(hidden),
            allow_silence=True,
            on_step=host.engine_steps(host.Stages(hidden.unique_id), own["model"]),
        )
        before = host.keep_alive(source)
    temporary = [one for one, goes in ((before, before != source), (path, prefix is None)) if goes]
    part = {"start": float(cut.start), "duration": float(cut.duration or 0)}
    compare = {"before": host.view_ref(before), "after": host.view_ref(path), **part}
    made = host.video_of(path, host.hold(hidden.unique_id, temporary))
    return io.NodeOutput(made, _as_json(report), ui={"latentsync_compare": [compare]})


def _as_json(report: Report) -> str:
    facts = report.as_dict()
    return json.dumps(facts | {"out": host.short_text(facts["out"])}, indent=2)


def times(start: float, duration: float) -> tuple[Any, Any]:
    return typed_seconds(start), typed_seconds(duration) or None
