"""Choose one grid for every tensor, a vocabulary and runtime settings, under a device's budgets.

Numbers in, numbers out: sensitivities are measured by `modeling` and handed in, so everything here is tested in
milliseconds. `cost` prices a choice on a device, `allocate` solves it exactly, `front` sweeps the trade-off,
`explain` puts it into words, `plan` strings them together.
"""
