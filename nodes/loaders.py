"""Models in: from disk, and, only when it is asked for, from the network."""

from typing import Any

from comfy_api.latest import io

from ..latentsync.weights.load import DTYPES
from . import host, inputs


class LatentSyncLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncLoader",
            display_name="LatentSync: Load Model",
            description="Loads a LatentSync checkpoint with the VAE and the Whisper encoder that belong to it."
            " nano is built in; 1.5 and 1.6 are found by size under any name, in models/latentsync and where ComfyUI"
            " keeps VAEs and audio encoders. Nothing is downloaded here.",
            inputs=[
                inputs.checkpoint(),
                inputs.resolution(optional=False),
                host.advanced(
                    io.Combo.Input(
                        "dtype",
                        options=["auto", *DTYPES],
                        default="auto",
                        tooltip="Number format of the U-Net. auto: what ComfyUI chooses for this card. fp16 and bf16"
                        " take half the memory of fp32.",
                    )
                ),
                *inputs.lora(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The U-Net: for LatentSync: Sampler, or KSampler."),
                io.Vae.Output(display_name="vae", tooltip="The VAE between face crops and latents."),
                io.AudioEncoder.Output(display_name="audio_encoder", tooltip="Whisper: encodes speech for the U-Net."),
            ],
        )

    @classmethod
    def execute(
        cls, checkpoint: str, resolution: int, dtype: str, lora: str = host.NO_LORA, lora_strength: float = 1.0
    ) -> io.NodeOutput:
        return io.NodeOutput(*host.load(checkpoint, resolution or None, DTYPES.get(dtype), lora, lora_strength))

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> list[float]:
        return inputs.files_changed(**given)


class LatentSyncDownload(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncDownload",
            display_name="LatentSync: Download Model",
            description="Downloads one model file into models/latentsync and checks its SHA-256. The only node that"
            " uses the network. An interrupted download continues where it stopped; an existing file is kept."
            " nano needs face-landmarker and whisper-tiny.en; 1.5 and 1.6 need vae, whisper-tiny and face-landmarker.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=host.downloads(),
                    default="face-landmarker",
                    tooltip="Which file. Sizes: " + host.download_sizes() + ".",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is now.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        path = host.download(name, host.Stages(cls.hidden.unique_id))
        return io.NodeOutput(path, ui={"text": [host.short_text(f"{name} is in {path}")]})
