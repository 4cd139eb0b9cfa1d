"""Talking-head footage made ready for training: eight steps from a folder of videos to aligned crops and a manifest."""
