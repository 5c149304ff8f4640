"""What a person sees of a fleet, and what calls one: roll-ups, the questions of `records.monitor`, alerts.

schema       the tables of roll-ups, alerts and the server's life
sketches     quantiles of many numbers in a few bytes
rollups      new answers added to sums and sketches, each once
window       roll-ups of a window, merged
presence     online, degraded and why, offline
releases     digests as labels, lineages, manifests
drift        where drift verdicts come from
fleet        question → the first screen
device       question → one device
outputs      question → answers
events       question → what happened
canaries     question → golden answers of two releases
bundles      question → releases
hard         question → answers worth learning from, and characters that the vocabulary lacks
rules        alerts.toml, and the rules where there is none
measures     a rule's metric from the store
alerts       pending, firing, resolved
webhook      alerts told to another server
tick         everything that a server does of this by itself
"""
