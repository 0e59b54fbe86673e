"""Tokenizers seen as vocabularies, and maps from a new vocabulary to an old one."""
