"""Why a clip is dropped: the reasons in the manifest and what they mean."""

REASONS = {
    "unreadable": "the file cannot be decoded, or holds no video",
    "no_sound": "there is no audio track that can be decoded",
    "bad_sound": "the audio is too short, or has samples that are not numbers",
    "short": "the shot, or what is left of it, is shorter than --min-seconds",
    "silent": "the audio is silent (peak below -60 dB)",
    "frozen": "the picture does not change for a second or longer",
    "no_face": "no face in any frame",
    "several_faces": "more than one face",
    "face_lost": "the face is not in every frame",
    "cut": "a cut or a jump inside the clip that the shot detector missed",
    "small_face": "the face is smaller than --min-face",
    "unmeasured": "the SyncNet cannot measure it (silence, too few windows)",
    "low_confidence": "lips and audio match worse than --min-confidence",
    "far_offset": "audio and video are further apart than --max-offset",
    "low_quality": "the image quality is below --min-quality",
    "error": "a step failed for another reason; it is tried again by the next run",
}
