"""Training: one state tree, pure steps, and the loop that carries them; knows no method by name."""
