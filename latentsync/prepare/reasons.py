"""Why a clip is dropped: the words that the manifest uses, and what they mean."""

REASONS = {
    "unreadable": "the file cannot be decoded, or holds no video",
    "no_sound": "there is no sound track that can be decoded",
    "bad_sound": "the sound is too short, or is not made of numbers",
    "short": "the shot, or what is left of it, is shorter than --min-seconds",
    "silent": "the sound is silent (peak below -60 dB)",
    "frozen": "the picture stands still for a second or longer",
    "no_face": "no face in any frame",
    "several_faces": "more than one face",
    "face_lost": "the face is not in every frame",
    "cut": "a cut or a jump inside the piece that the shot detector missed",
    "small_face": "the face is smaller than --min-face",
    "unmeasured": "the SyncNet cannot judge it (silence, too few windows)",
    "low_confidence": "lips and sound match worse than --min-confidence",
    "far_offset": "sound and picture are further apart than --max-offset",
    "low_quality": "the picture's quality is below --min-quality",
    "error": "a step failed for another reason; it is tried again by the next run",
}
