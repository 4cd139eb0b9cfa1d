"""Files for the templates' first run: brought into ComfyUI's input folder once, and never again."""

import logging
from pathlib import Path

import folder_paths

ASSETS = Path(__file__).parents[2] / "latentsync" / "assets"
SAMPLES = {
    "latentsync_face.mp4": ASSETS / "samples" / "face.mp4",
    "latentsync_two_people.mp4": ASSETS / "samples" / "two_people.mp4",
    "latentsync_portrait.jpg": ASSETS / "astronaut.jpg",
    "latentsync_voice.flac": ASSETS / "voice.flac",
    "latentsync_voice_left.flac": ASSETS / "samples" / "voice_left.flac",
    "latentsync_voice_right.flac": ASSETS / "samples" / "voice_right.flac",
}
"""Names in the input folder. Not in a folder of their own: Load Video and its like list the top level only."""
RECORD = "latentsync_samples.txt"
"""In ComfyUI's user folder: the names that were brought already, so that a deleted sample stays deleted."""


def bring_samples() -> None:
    """Failing to is no error: the templates then ask for files."""
    record = Path(folder_paths.get_user_directory()) / RECORD
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a+", encoding="utf-8") as known:  # cannot be written: nothing is brought either
            known.seek(0)
            brought = known.read().split()
            for name, source in SAMPLES.items():
                if name in brought:
                    continue
                _bring(source, Path(folder_paths.get_input_directory()) / name)
                known.write(name + "\n")
    except OSError as error:
        logging.info("LatentSync's templates have no sample files: %s", error)


def _bring(source: Path, target: Path) -> None:
    """A file that is there already is the user's, and stays as it is."""
    content = source.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return
    except OSError:
        target.unlink(missing_ok=True)
        raise
