"""Models on disk: lazy checkpoints, parameter names, where models come from, whether they are sound."""
