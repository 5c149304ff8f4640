"""Turn what a user has (files, a hub data set, nothing) into examples with a calibration and a held-out part."""
