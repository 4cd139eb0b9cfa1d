"""How good is a result? Inference never imports it."""
