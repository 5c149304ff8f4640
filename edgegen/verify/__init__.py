"""Prove an artifact on the runtime that the device will use, against what the original said.

No torch here: the original's outputs were saved beside the compressed model, so the same check runs on the
workstation and on the device.
"""
