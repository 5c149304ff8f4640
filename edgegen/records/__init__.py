"""The nouns: one immutable record a file, in the order in which the work makes them.

model → target, profile → data → plan → compressed → artifact → report. Records hold numbers and names, never
tensors, and each that is written to disk carries `schema`.
"""
