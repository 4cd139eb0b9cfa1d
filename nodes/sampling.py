"""From crops and sound to latents of a talking face."""

from typing import Any

from comfy_api.latest import io

from ..latentsync.face.aligned import AlignedFace
from ..latentsync.settings import Settings
from . import host, inputs
from .conditioning import empty_latents, frame_conditions, sound_tokens
from .images import check_track, rate_of


class LatentSyncCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncCondition",
            display_name="LatentSync: Condition",
            description="Combines face crops and speech into what the sampler needs to repaint the mouths. If audio"
            " and video differ in length, use LatentSync: Fit Length first.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model, from LatentSync: Load Model."),
                io.Image.Input("crops", tooltip="Face crops, one for each frame, from LatentSync: Find Faces."),
                io.AudioEncoderOutput.Input("audio", tooltip="The speech, from LatentSync: Encode Audio."),
                inputs.FACE_TRACK.Input("face_track", tooltip="Where the face is, from Find Faces or Fit Length."),
                inputs.fps("of the crops: matches each frame with its audio."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With the speech."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="Without the speech: what guidance leads away from."
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="Empty, one for each frame; any sampler draws one noise for all."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, vae: Any, crops: Any, audio: dict[str, Any], face_track: AlignedFace, fps: float) -> io.NodeOutput:
        check_track(face_track)
        stages = host.Stages(cls.hidden.unique_id)
        tokens = sound_tokens(audio, rate_of(fps), face_track.frames)
        frames = frame_conditions(vae, crops, face_track, stages.step)
        facts = {"latentsync": frames}
        silence = tokens.new_zeros(1).expand_as(tokens)
        return io.NodeOutput([[tokens, facts]], [[silence, facts]], empty_latents(frames))


class LatentSyncNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncNoise",
            display_name="LatentSync: Noise",
            description="Noise for SamplerCustomAdvanced: one frame of it, the same for every frame of the clip, as"
            " LatentSync was trained; noise that differs from frame to frame flickers.",
            inputs=[inputs.seed()],
            outputs=[io.Noise.Output(display_name="noise", tooltip="Drawn on the CPU: the same on every device.")],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(host.OneNoise(seed))


class LatentSyncSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncSampler",
            display_name="LatentSync: Sampler",
            description="Repaints the mouths, in windows of 16 frames, exactly as the command line does. ComfyUI's"
            " KSampler (ddim, ddim_uniform; simple for a single step; cfg = guidance) does nearly the same.",
            inputs=[
                io.Model.Input("model", tooltip="From LatentSync: Load Model; can be patched (LoRA, …)."),
                io.Conditioning.Input("positive", tooltip="From LatentSync: Condition."),
                io.Conditioning.Input("negative", tooltip="From LatentSync: Condition."),
                io.Latent.Input("latent", tooltip="From LatentSync: Condition; only its size matters."),
                *inputs.sampling(),
                inputs.mode(draft=False),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The repainted crops, for VAE Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        guidance: float,
        solver: str,
        mode: str = Settings.mode,
    ) -> io.NodeOutput:
        settings = Settings(seed=seed, steps=steps, guidance=guidance, solver=solver, mode=mode)
        stages = host.Stages(cls.hidden.unique_id)
        return io.NodeOutput(host.sample(model, positive, negative, latent, settings, stages))
