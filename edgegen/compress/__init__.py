"""Carry a plan out: trim the tokenizer, round every tensor onto its grid, write one folder."""
