"""Teach a model a task: fine-tune it, or distill a smaller one from it."""
