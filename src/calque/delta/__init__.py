"""Additions to a model at chosen places, trained while the model stays as it is."""
