"""Ways to change a model's structure, so that it is smaller before its weights are rounded.

One module a technique, with the members of `technique.Technique`. `registry` knows them by name. None of them knows the
planner or a file format; what a runtime cannot express a technique refuses by itself, with the reason.
"""
