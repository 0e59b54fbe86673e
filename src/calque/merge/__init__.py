"""New checkpoints computed from old ones, tensor by tensor."""
