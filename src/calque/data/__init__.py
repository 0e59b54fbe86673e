"""Texts in, texts out: readers, splits, alignment."""
