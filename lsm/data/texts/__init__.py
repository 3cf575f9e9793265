"""Texts as columns of token ids: vocabularies, how texts are encoded, padding and packing."""
