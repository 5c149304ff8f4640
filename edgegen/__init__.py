"""edgegen: pick a device, give a model and your data, get artifacts that fit the device, proven on its own runtime."""

__version__ = "0.1.0"
