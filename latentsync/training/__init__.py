"""Training of the U-Net and of SyncNets. Inference never imports it."""
