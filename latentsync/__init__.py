"""LatentSync: a face and a speech in, a talking video out."""
