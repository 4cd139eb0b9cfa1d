"""A pack of nodes for ComfyUI that give what other people's nodes may give: odd values on well-known sockets."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch


class OddAudio:
    """An AUDIO of that many recordings: noise, or silence, or nothing at all."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("AUDIO",), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        numbers = dict.fromkeys(("batch", "channels", "rate", "samples"), ("INT", {"default": 1, "max": 10**6}))
        return {"required": numbers | {"loudness": ("FLOAT", {"default": 0.1})}}

    def make(self, batch: int, channels: int, rate: int, samples: int, loudness: float) -> tuple[Any]:
        noise = torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(0))
        return ({"waveform": noise * loudness, "sample_rate": rate},)


class OddImage:
    """The pictures with a NaN in the last one."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def make(self, image: torch.Tensor) -> tuple[Any]:
        image = image.clone()
        image[-1, 0, 0, 0] = float("nan")
        return (image,)


class OddModel:
    """Stable Diffusion's MODEL without its network, and CONDITIONING as its text encoder gives it."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING"), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any, Any]:
        from comfy.model_base import BaseModel
        from comfy.model_patcher import ModelPatcher
        from comfy.supported_models import SD15

        model = BaseModel(SD15({"disable_unet_model_creation": True}))
        cpu = torch.device("cpu")
        return ModelPatcher(model, load_device=cpu, offload_device=cpu), [[torch.zeros(1, 77, 768), {}]]


class OddHearing:
    """The AUDIO_ENCODER and AUDIO_ENCODER_OUTPUT of another encoder: more layers, wider ones."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("AUDIO_ENCODER", "AUDIO_ENCODER_OUTPUT"), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": dict.fromkeys(("layers", "width", "samples"), ("INT", {"default": 1, "max": 10**6}))}

    def make(self, layers: int, width: int, samples: int) -> tuple[Any, Any]:
        """samples: of sound at 16 kHz."""
        every = [torch.zeros(1, 1 + samples // 320, width) for _ in range(layers)]
        heard = {"encoded_audio": every[:1], "encoded_audio_all_layers": every, "audio_samples": samples}

        class Encoder:
            def encode_audio(self, audio: torch.Tensor, sample_rate: int) -> Any:
                return heard

        return Encoder(), heard


class OddVideo:
    """A VIDEO whose file is in memory."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("VIDEO",), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO",)}}

    def make(self, video: Any) -> tuple[Any]:
        return (type(video)(BytesIO(Path(video.get_stream_source()).read_bytes())),)


class OddTrack:
    """What another pack may call a FACE_TRACK."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("FACE_TRACK",), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return ([{"x": 1, "y": 2}],)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (OddAudio, OddImage, OddModel, OddHearing, OddVideo, OddTrack)}
