"""Run one artifact: open, generate, score, measure, close. One module a runtime, one registry.

Token ids go in and token ids come out; text is turned into ids by the `tokenizers` library for every runtime.
"""
