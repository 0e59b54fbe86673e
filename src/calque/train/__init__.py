"""The training loop: what trains, towards what, on which stream, for how long."""
