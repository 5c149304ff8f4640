"""One plain training loop on `accelerate`: batches, losses, checkpoints. Fine-tuning, distilling and healing use it."""
