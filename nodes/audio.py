"""Speech in: what the U-Net hears of it."""

from typing import Any

from comfy_api.latest import io

from ..latentsync.audio.load import from_waveform, is_silent
from ..latentsync.audio.pauses import hush
from ..latentsync.settings import Settings
from . import host, inputs
from .images import speech_of


class LatentSyncEncodeAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncEncodeAudio",
            display_name="LatentSync: Encode Audio",
            description="Encodes speech for the U-Net, with any number of channels at any sample rate. The same as"
            " ComfyUI's Audio Encoder Encode with our AUDIO_ENCODER, but it checks the audio first. Silence is"
            " accepted too.",
            inputs=[
                io.AudioEncoder.Input("audio_encoder", tooltip="From LatentSync: Load Model."),
                io.Audio.Input("audio", tooltip="The speech for the face to say; at least 0.15 s."),
                inputs.silence(" Here relax and close are the same; for close, also choose it on Fit Length."),
            ],
            outputs=[
                io.AudioEncoderOutput.Output(
                    display_name="audio_encoder_output", tooltip="Whisper's hidden states, 50 rows per second."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, audio_encoder: Any, audio: dict[str, Any], silence: str = Settings.silence) -> io.NodeOutput:
        stages = host.Stages(cls.hidden.unique_id)
        waveform, rate = speech_of(audio)
        if is_silent(waveform):
            host.warn("the speech is silent from start to end")
        stages.step("encoding audio", 0, 1)
        if silence != "keep":
            speech = from_waveform(waveform, rate)
            waveform, rate = hush(speech.waveform)[None], speech.sample_rate
        heard = audio_encoder.encode_audio(waveform[None], rate)
        stages.step("encoding audio", 1, 1)
        return io.NodeOutput(heard)
