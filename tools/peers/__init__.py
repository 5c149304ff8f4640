"""What other tools make of a checkpoint, and the same checkpoint as edgegen packs it: shared by the benchmarks."""
