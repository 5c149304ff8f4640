"""Number grids and their exact packing.

A grid turns rows of real weights into packed bytes that a runtime executes as they are, and back. One module a
family; `ggml` holds the grids of GGUF files. Which grids a runtime has kernels for stands in `targets/`.
"""
