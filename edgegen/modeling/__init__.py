"""Everything that knows torch and transformers: load, describe, measure and simulate a model.

The stages above read numbers and packed bytes; this package turns a checkpoint into them.
"""
