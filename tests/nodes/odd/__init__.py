"""A pack of nodes for ComfyUI that give what other people's nodes may give: odd values on well-known sockets."""

from collections import namedtuple
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
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


class OddRegion:
    """A box in the forms that packs give it: KJNodes' BBOX, Impact Pack's SEGS, ComfyUI's BOUNDING_BOX."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("BBOX", "SEGS", "BOUNDING_BOX"), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": dict.fromkeys(("x", "y", "width", "height"), ("INT", {"default": 0, "max": 10**4}))}

    def make(self, x: int, y: int, width: int, height: int) -> tuple[Any, Any, Any]:
        seg = SEG(None, None, 0.9, (x, y, x + width, y + height), (x, y, x + width, y + height), "face", None)
        return [(x, y, width, height)], ((0, 0), [seg]), [[{"x": x, "y": y, "width": width, "height": height}]]


SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")


class OddLandmarks:
    """FACE_LANDMARKS as ComfyUI's MediaPipeFaceLandmarker gives them, made by the mediapipe package."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("FACE_LANDMARKS",), "make", "odd"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "model": ("STRING", {"default": ""})}}

    def make(self, image: torch.Tensor, model: str) -> tuple[Any]:
        import mediapipe as mp
        from mediapipe.tasks.python import vision
        from mediapipe.tasks.python.core.base_options import BaseOptions

        height, width = image.shape[1:3]
        base = BaseOptions(model_asset_buffer=Path(model).read_bytes())
        frames = []
        with vision.FaceLandmarker.create_from_options(vision.FaceLandmarkerOptions(base, num_faces=4)) as landmarker:
            for picture in (image * 255).round().byte().numpy():
                found = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=picture.copy()))
                meshes = [np.array([(p.x * width, p.y * height) for p in mesh]) for mesh in found.face_landmarks]
                frames.append([{"landmarks_xy": mesh, "score": 1.0} for mesh in meshes])
        return ({"frames": frames, "image_size": (height, width)},)


KINDS = (OddAudio, OddImage, OddModel, OddHearing, OddVideo, OddTrack, OddRegion, OddLandmarks)
NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in KINDS}
