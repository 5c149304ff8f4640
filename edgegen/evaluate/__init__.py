"""Judge a model: scores on tasks, quality of what it writes, fairness, and what its answers hang on."""
