"""The nodes as they are promised to users: ids, names and sockets that saved workflows rely on."""

from typing import NamedTuple


class Promise(NamedTuple):
    """inputs: names in order, those in brackets may stay unconnected. outputs: socket types in order."""

    title: str
    inputs: str
    outputs: str


NODES = {
    "LatentSyncLoader": Promise(
        "Load Model", "checkpoint resolution dtype [lora] [lora_strength]", "MODEL VAE AUDIO_ENCODER"
    ),
    "LatentSyncDownload": Promise("Download Model", "name", "STRING"),
    "LatentSyncEncodeAudio": Promise("Encode Audio", "audio_encoder audio [silence]", "AUDIO_ENCODER_OUTPUT"),
    "LatentSyncFindFaces": Promise(
        "Find Faces",
        "images face resolution preview_frame [model] [region] [landmarks] [points]",
        "IMAGE FACE_TRACK IMAGE",
    ),
    "LatentSyncFitLength": Promise(
        "Fit Length", "images audio fps fit [crops] [face_track] [silence]", "IMAGE AUDIO IMAGE FACE_TRACK"
    ),
    "LatentSyncCondition": Promise("Condition", "vae crops audio face_track fps", "CONDITIONING CONDITIONING LATENT"),
    "LatentSyncNoise": Promise("Noise", "seed", "NOISE"),
    "LatentSyncSampler": Promise(
        "Sampler", "model positive negative latent seed steps guidance solver [mode]", "LATENT"
    ),
    "LatentSyncComposite": Promise(
        "Composite", "images crops face_track [grow] [feather] [match_color] [keep_out]", "IMAGE MASK"
    ),
    "LatentSyncFaceRegions": Promise("Face Regions", "face_track part", "BOUNDING_BOX BBOX MASK"),
    "LatentSyncLipSync": Promise(
        "Lip Sync",
        "images audio fps checkpoint [resolution] fit face steps guidance solver seed [keep_out] [model] [vae] "
        "[audio_encoder] [silence] [points] [lora] [lora_strength] [mode]",
        "IMAGE AUDIO MASK",
    ),
    "LatentSyncVideo": Promise(
        "Video",
        "video [audio] checkpoint [resolution] fit face steps guidance solver seed [start] [duration] "
        "[audio_start] [audio_duration] still_fps window_batch [watermark] save_to filename_prefix [codec] [quality] "
        "[strip_metadata] [audio_track] [model] [vae] [audio_encoder] [silence] [spans] [points] [no_face] [mode] "
        "[encoder] [lora] [lora_strength]",
        "VIDEO STRING",
    ),
    "LatentSyncSpeakers": Promise(
        "Speakers",
        "video speakers checkpoint [resolution] fit steps guidance solver seed [start] [duration] still_fps "
        "window_batch [watermark] save_to filename_prefix [codec] [quality] [strip_metadata] [model] [vae] "
        "[audio_encoder] [silence] [spans] [no_face] [mode] [encoder] [lora] [lora_strength]",
        "VIDEO STRING",
    ),
    "LatentSyncScore": Promise(
        "Score", "[video] [images] [audio] fps face [syncnet]", "FLOAT INT FLOAT IMAGE FLOAT FLOAT INT"
    ),
    "LatentSyncPersonalize": Promise(
        "Personalize",
        "[video] [images] [audio] fps name checkpoint consent minutes face [anyway] [training_steps] [training_seed]",
        "LORA_MODEL * IMAGE STRING",
    ),
}
