"""Small valid files of every kind that a parser takes, made here."""

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

RATE = 16_000
VIDEO = {"a.mp4": ("libx264", "aac"), "a.mkv": ("mpeg4", "flac"), "a.avi": ("mjpeg", "pcm_s16le")}
SOUND = {"a.wav": "pcm_s16le", "a.flac": "flac", "a.mp3": "libmp3lame", "a.ogg": "flac"}
PICTURES = {"a.png": "PNG", "a.jpg": "JPEG", "a.webp": "WEBP", "a.gif": "GIF", "a.tif": "TIFF", "a.bmp": "BMP"}


def media() -> dict[str, bytes]:
    films = {name: _film(name.split(".")[1], *codecs) for name, codecs in VIDEO.items()}
    sounds = {name: _film(name.split(".")[1], None, codec) for name, codec in SOUND.items()}
    return films | sounds | {name: _picture(kind) for name, kind in PICTURES.items()}


def _film(container: str, video: str | None, audio: str) -> bytes:
    file, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(file, "w", format={"mkv": "matroska"}.get(container, container)) as out:
        picture: Any = out.add_stream(video, rate=25) if video else None
        sound: Any = out.add_stream(audio, rate=RATE)
        if picture:
            picture.width, picture.height = 64, 48
            picture.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
            for _ in range(8):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
                out.mux(picture.encode(frame))
            out.mux(picture.encode(None))
        for block in _tone(sound):
            out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    return file.getvalue()


def _tone(stream: Any) -> Iterator[av.AudioFrame]:
    if not stream.codec_context.is_open:
        stream.codec_context.open()
    size, resampler = stream.codec_context.frame_size or 1024, av.AudioResampler(stream.format.name, stream.layout.name)
    for start in range(0, RATE // 3, size):
        wave = (np.sin(np.arange(start, start + size) / 8) * 9000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        yield from resampler.resample(frame)


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (24, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Headers are what is read first: few tensors in most, so that a change meets one."""
    import torch
    from safetensors.torch import save_file

    from ..tiny import tiny_checkpoint

    tensors = {
        "decoder.conv_in.weight": torch.zeros(4, 4, 3, 3),
        "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
        "conv_in.bias": torch.zeros(4),
    }
    own = {"format": "latentsync", "resolution": "256", "version": "nano", "default_steps": "4", "vae_scaling": "0.5"}
    save_file(tensors, folder / "few.safetensors", own)
    torch.save({"state_dict": tensors}, folder / "few.pt")
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)
    tiny_checkpoint(folder / "whole.safetensors", taesd=True)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


INPUTS: dict[str, Any] = {
    "file": "clip.mp4", "steps": 20, "guidance": 1.5, "on": True, "model": "nano", "text": "hello",
    "wire": ["2", 0], "format": "mp4", "format.codec": "h264", "color": "#ff8000", "row.a": {"__value__": [1, 2]},
}  # fmt: skip
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "LatentSync", "inputs": INPUTS, "_meta": {"title": "Lip Sync"}},
    "2": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}},
}
INFO: dict[str, Any] = {
    "LatentSync": {
        "input": {
            "required": {
                "file": [["a.mp4"], {"video_upload": True}],
                "steps": ["INT", {"min": 1, "max": 100, "default": 20}],
                "guidance": ["FLOAT", {"min": 0.0, "max": 20.0}],
                "on": ["BOOLEAN", {}],
                "model": [["nano", "1.6"], {}],
                "text": ["STRING", {}],
                "wire": ["IMAGE", {}],
            },
            "optional": {
                "color": ["COLOR", {}],
                "format": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {"options": [{"key": "mp4", "inputs": {"required": {"codec": [["h264", "h265"], {}]}}}]},
                ],
            },
        }
    },
    "LoadVideo": {"input": {"required": {"file": [["a.mp4"], {"video_upload": True}]}}},
}
ANSWER: dict[str, Any] = {
    "error": {"message": "no", "details": "wrong"},
    "node_errors": {"1": {"errors": [{"message": "m", "details": "d", "extra_info": {"input_name": "file"}}]}},
}
JOB = {"video": "a.mp4", "audio": "b.wav", "out": "c.mp4", "steps": 4, "guidance": 1.5, "seed": 7}
RECORD = {"status": "kept", "path": "clips/a.mp4", "source": "a.mp4", "margin": 3}
RESULT = {
    "key": "ab",
    "line": 1,
    "out": "c.mp4",
    "status": "done",
    "attempts": 1,
    "worker": "0",
    "bytes": 10,
    "frames": 3,
}
STEP = {"step": "probe", "key": "ab", "data": {"frames": 3}, "rejected": None}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
