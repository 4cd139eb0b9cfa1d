"""A small trainer for the VAE and the U-Net. Inference never imports it."""
