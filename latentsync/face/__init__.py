"""Find a face, follow it, cut it out straight, and put the mouth back."""
