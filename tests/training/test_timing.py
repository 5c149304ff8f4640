"""Timing a step of training leaves the module as it was."""

import torch

from edgegen.training.timing import seconds_a_step


def test_a_step_is_timed_without_changing_weights() -> None:
    module = torch.nn.Linear(4, 4)
    before = module.weight.detach().clone()
    assert seconds_a_step(module, lambda: module(torch.ones(1, 4)).sum().backward()) > 0
    assert torch.equal(module.weight, before) and module.weight.grad is None
