"""The workflows that users draw, with short settings: from single nodes and in one node."""

from typing import Any

from .graphs import Graph, Node

QUICK: dict[str, Any] = {"seed": 1, "steps": 2, "guidance": 1.0, "solver": "ddim"}
"""Sampling that takes seconds on a processor."""


def loader(g: Graph, checkpoint: str = "nano", **inputs: Any) -> Node:
    return g.node("LatentSyncLoader", checkpoint=checkpoint, **{"resolution": 0, "dtype": "auto"} | inputs)


def loaded(g: Graph, clip: str) -> Node:
    """Pictures, sound, rate."""
    return g.node("GetVideoComponents", video=g.node("LoadVideo", file=clip))


def find(g: Graph, images: Any, **inputs: Any) -> Node:
    return g.node(
        "LatentSyncFindFaces",
        "find",
        images=images,
        **{"face": "largest", "resolution": 0, "preview_frame": 0} | inputs,
    )


def fit(g: Graph, images: Any, audio: Any, found: Node, **inputs: Any) -> Node:
    faces = {"crops": found, "face_track": found[1]}
    return g.node(
        "LatentSyncFitLength", "fit", images=images, audio=audio, **{"fps": 25.0, "fit": "pingpong"} | faces | inputs
    )


def condition(g: Graph, vae: Any, crops: Any, heard: Any, track: Any, **inputs: Any) -> Node:
    wired = {"vae": vae, "crops": crops, "audio": heard, "face_track": track}
    return g.node("LatentSyncCondition", "condition", **wired | {"fps": 25.0} | inputs)


def sample(g: Graph, model: Any, asked: Node, **inputs: Any) -> Node:
    wired = {"model": model, "positive": asked, "negative": asked[1], "latent": asked[2]}
    return g.node("LatentSyncSampler", "sample", **wired | QUICK | inputs)


def parts(clip: str, sound: str | None = None, **inputs: Any) -> Graph:
    """From a video in the input folder to a video in the output folder; nodes bear names ("find", "sample", …).

    inputs: of a node by its name, find={"face": "left"}.
    """
    g = Graph()
    model, source = loader(g), loaded(g, clip)
    audio = g.node("LoadAudio", audio=sound) if sound else source[1]
    found = find(g, source, model=model, **inputs.get("find", {}))
    fitted = fit(g, source, audio, found, **{"fps": source[2]} | inputs.get("fit", {}))
    heard = g.node("LatentSyncEncodeAudio", "hear", audio_encoder=model[2], audio=fitted[1])
    asked = condition(g, model[1], fitted[2], heard, fitted[3], **{"fps": source[2]} | inputs.get("condition", {}))
    latent = sample(g, model, asked, **inputs.get("sample", {}))
    crops = g.node("VAEDecode", "decode", samples=latent, vae=model[1])
    wired = {"images": fitted, "crops": crops, "face_track": fitted[3]}
    made = g.node("LatentSyncComposite", "paste", **wired | inputs.get("paste", {}))
    save(g, g.node("CreateVideo", images=made, audio=fitted[1], fps=source[2]))
    return g


def save(g: Graph, video: Any) -> Node:
    return g.node("SaveVideo", "save", video=video, filename_prefix="test", format="mp4", codec="h264")


def all_settings(**inputs: Any) -> dict[str, Any]:
    return {"checkpoint": "nano", "fit": "pingpong", "face": "largest"} | QUICK | inputs


def in_one(g: Graph, images: Any, audio: Any, **inputs: Any) -> Node:
    return g.node("LatentSyncLipSync", "lipsync", images=images, audio=audio, **all_settings(**{"fps": 25.0} | inputs))


def streamed(g: Graph, video: Any, **inputs: Any) -> Node:
    """LatentSyncVideo."""
    how = {"still_fps": 25, "window_batch": 1, "save_to": "temp", "filename_prefix": "video/LatentSync"}
    return g.node("LatentSyncVideo", "video", video=video, **all_settings(**how | inputs))
