"""Distillation of imported checkpoints: the methods of this package's parent, on streams, from prompts alone."""
