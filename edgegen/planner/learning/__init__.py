"""What devices measured turned into corrected coefficients of their profile: `learn`."""

from edgegen.planner.learning.learn import learn

__all__ = ["learn"]
