"""Whether answers still look as they did: statistics of what devices report against what a release was packed with.

    read        the store's answers as histograms
    measures    how far two histograms, or two rates, are apart
    thresholds  how far apart two samples of the same get by chance
    verdicts    a window, and the one before it → OK, WATCH, DRIFT or n too small
    cells       the drift of a whole fleet, for people
    compare     a new release against the devices that still run another
    gauge       the same for a rollout's judge
    streams     changes within one device's stream of answers
    embeddings  moved vectors of hashed features
    faults      device, data or release: whose fault a change is
    simulate    false alarms without a shift, detection with one

Only numpy is needed.
"""
