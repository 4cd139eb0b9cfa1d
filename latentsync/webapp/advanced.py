"""The settings that most people leave as they are."""

from typing import Any

from ..errors import UserError
from ..settings import FITS, LIKE_SOURCE, SILENCES, SOLVERS, WATERMARKS, Settings
from ..timeline import Cut, parse_spans
from .config import Limits
from .people import MorePeople
from .sessions import Session
from .taking import Taking
from .uploads import Media, take_lora
from .words import plain

USUAL_CODEC = "h264"
"""The browser shows the result, and few play H.265."""
FIT_LABELS = {
    "pingpong": "Play the video back and forth until the voice ends",
    "loop": "Restart the video until the voice ends",
    "hold": "Hold the last frame until the voice ends",
    "trim": "End with the shorter of the two",
    "silence": "Keep the whole video, silent after the voice",
}
SILENCE_LABELS = {
    "keep": "Whatever the model makes of the audio there",
    "relax": "At rest: breath, hum and music do not move the lips",
    "close": "At rest, with the lips closed",
}
CODEC_LABELS = {
    "h264": "H.264 (.mp4): plays everywhere",
    LIKE_SOURCE: "Same as your video, if possible",
    "h265": "H.265 (.mp4): smaller; few browsers play it",
    "av1": "AV1 (.mp4): smaller still; new players",
    "vp9": "VP9 (.webm): keeps transparency",
    "prores": "ProRes (.mov): large, for editing; keeps transparency",
}
WATERMARK_LABELS = {
    "none": "None",
    "metadata": "In the file's metadata, where players and other programs can read it",
    "visible": "In the metadata, and visible in a corner of the video",
}
ENCODER_LABELS = {
    "software": "Software: smaller files, the same everywhere",
    "hardware": "The graphics card, if possible: faster, larger files",
}
STRENGTH = "strength"
"""Key of the LoRA's strength."""
LONG = 60.0
"""Seconds of a clip from which its part is typed: on a slider, a finger's width would be many seconds."""
BY_HAND = "by-hand"
"""Key of the choice to point out a face although some were found."""
DEFAULT_TRACK = {Settings.audio_track: "The default one"}


class MoreSettings:
    """st: Streamlit. watermark: of every result here; "none" leaves the choice to the user."""

    def __init__(self, st: Any, session: Session, limits: Limits, watermark: str, files: Taking) -> None:
        self.st, self.session, self.limits, self.watermark, self.files = st, session, limits, watermark, files

    def show(self, defaults: Settings, own_sound: bool) -> tuple[Settings, Cut]:
        """defaults: the quality's, for the checkpoint."""
        with self.st.expander("Advanced"):
            mouth, length, people, file = self.st.tabs(["Mouth", "Length and sound", "More voices", "File"])
            with mouth:
                settings = self._mouth(defaults)
                self._person()
            with length:
                part = self._part()
                settings |= self._spans() | self._sound(defaults, own_sound)
            with people:
                MorePeople(self.st, self.session, self.limits, self.files).show(own_sound)
            with file:
                settings |= self._file()
        shot = self.session.shot
        if shot is not None and self.session.points:
            settings["points"] = f"{self.session.points},{shot.frame - part.start}"
        elif shot is not None and shot.boxes:
            settings["face"] = shot.point(self.session.picked, part.start)
        face = self.session.face
        cut = Cut() if face is None or face.kind == "picture" else used_cut(face, part)
        return Settings(**settings), cut

    def _choose(self, label: str, options: Any, labels: dict[Any, str], key: str, **rest: Any) -> Any:
        return self.st.selectbox(
            label, list(options), key=key, format_func=labels.__getitem__, disabled=self.session.busy, **rest
        )

    def _mouth(self, defaults: Settings) -> dict[str, Any]:
        st, busy = self.st, self.session.busy
        one, two, three = st.columns(3)
        steps = one.number_input(
            "Steps", 1, self.limits.steps, defaults.steps, key=f"steps-{defaults.mode}-{defaults.steps}",
            disabled=busy, help="Solver steps. Time grows in proportion.",
        )  # fmt: skip
        guidance = two.slider(
            "Guidance", 1.0, 3.0, defaults.guidance, 0.1, key=f"guidance-{defaults.guidance:g}", disabled=busy,
            help="How strongly the mouth follows the voice: more opens it wider. 1 is twice as fast.",
        )  # fmt: skip
        seed = three.number_input(
            "Seed", 0, 2**31 - 1, defaults.seed, key="seed", disabled=busy,
            help="A different number gives a different take; the same number gives the same video.",
        )  # fmt: skip
        silence = self._choose("The mouth in pauses of the voice", SILENCES, SILENCE_LABELS, "silence")
        solver = st.selectbox(
            "Solver", list(SOLVERS), index=list(SOLVERS).index(defaults.solver), key=f"solver-{defaults.mode}",
            disabled=busy, help="How noise is removed. ddim is the default; the others need fewer steps.",
        )  # fmt: skip
        if self.session.shot is not None and self.session.shot.boxes:
            label = "Mark the face by hand: one that was not found, a drawing or an animal"
            st.checkbox(label, key=BY_HAND, disabled=busy)
        chosen = {"guidance": float(guidance), "seed": int(seed), "silence": silence, "solver": solver}
        return {"steps": int(steps), "mode": defaults.mode, **chosen}

    def _person(self) -> None:
        """A file that teaches the model one person's mouth."""
        st, session = self.st, self.session
        if session.lora is None:
            if session.busy:
                return
            label = "A person's model (LoRA): a .safetensors file trained for the model above"
            self.files.upload("lora", label, ["safetensors"], take_lora)
            return
        words, button = st.columns([5, 3], vertical_alignment="center")
        words.markdown(f"**{plain(session.lora.name)}** · a person's model")
        if button.button("Remove the person's model", key="lora-remove", disabled=session.busy, width="stretch"):
            session.remove("lora")
            st.rerun()
        st.slider(
            "Strength of the person's model", 0.0, 1.5, 1.0, 0.05, key=STRENGTH, disabled=session.busy,
            help="1: as trained. 0: no effect.",
        )  # fmt: skip

    def _part(self) -> range:
        """The frames of the clip that are used."""
        face = self.session.face
        if face is None or face.frames == 1:
            return range(1)
        last, busy = float(face.seconds), self.session.busy
        if last > LONG:
            one, two = self.st.columns(2, vertical_alignment="bottom")
            label, key = "Part of the video that is used: from second", _part_key(face)
            one.number_input(label, 0.0, last, 0.0, 1.0, key=f"{key}-from", disabled=busy)
            two.number_input("Up to second", 0.0, last, last, 1.0, key=f"{key}-to", disabled=busy)
            return used_part(self.st, face)
        self.st.slider(
            "Part of the video that is used", 0.0, last, (0.0, last), float(1 / face.fps), format="%.2f s",
            key=_part_key(face), disabled=busy,
        )  # fmt: skip
        return used_part(self.st, face)

    def _spans(self) -> dict[str, Any]:
        """Which parts of the result get new lips."""
        face = self.session.face
        if face is None:
            return {}
        text = self.st.text_input(
            "Only these parts", key=f"spans-{face.path.stem}", placeholder="all of it", disabled=self.session.busy,
            help='Seconds or minutes:seconds of the result, such as "1.5-4, 1:20-": the rest is unchanged.',
        )  # fmt: skip
        try:
            parse_spans(text)
        except UserError as error:
            self.st.error(plain(str(error)))
        return {"spans": text.strip()}

    def _sound(self, defaults: Settings, own_sound: bool) -> dict[str, Any]:
        usual = list(FITS).index(defaults.fit)
        fit = self._choose("When voice and video differ in length", FITS, FIT_LABELS, "fit", index=usual)
        heard = self.session.face if own_sound else self.session.voice
        if heard is None or len(heard.tracks) < 2 or self.session.others:  # voices of several take their usual one
            return {"fit": fit}
        tracks = DEFAULT_TRACK | dict(heard.tracks)
        which = "The default is the track that players choose, or the first that is not silent."
        track = self._choose("Audio track", tracks, tracks, f"track-{heard.path.stem}", help=which)
        return {"fit": fit, "audio_track": track}

    def _file(self) -> dict[str, Any]:
        st, busy = self.st, self.session.busy
        codec = self._choose("Stored as", CODEC_LABELS, CODEC_LABELS, "codec")
        encoder = self._choose("Encoded by", ENCODER_LABELS, ENCODER_LABELS, "encoder")
        quality = st.slider(
            "Encoding quality", 1, 100, Settings.quality, key="encoding-quality", disabled=busy,
            help="Higher makes a larger file. It does not change the mouth.",
        )  # fmt: skip
        strip = st.checkbox(
            "Remove the source's title, dates, place, chapters and subtitles", key="strip", disabled=busy
        )
        watermark = self.watermark
        if watermark == "none":
            label = "Watermark: state that the lips are generated"
            watermark = self._choose(label, WATERMARKS, WATERMARK_LABELS, "watermark")
        stored = {"codec": codec, "encoder": encoder, "quality": int(quality), "strip_metadata": bool(strip)}
        return stored | {"watermark": watermark}


def _part_key(face: Media) -> str:
    return f"part-{face.path.stem}"


def used_part(st: Any, face: Media) -> range:
    """The frames of a clip that its slider leaves; all of them before it was drawn."""
    key, state = _part_key(face), st.session_state
    typed = state.get(f"{key}-from", 0.0), state.get(f"{key}-to", float(face.seconds))
    begin, end = state.get(key, typed)
    first, stop = (round(second * face.fps) for second in (begin, end))
    first = min(first, face.frames - 1)
    return range(first, min(face.frames, max(first + 1, stop)))


def used_cut(face: Media, part: range) -> Cut:
    return Cut(part.start / face.fps, None if part.stop == face.frames else len(part) / face.fps)
