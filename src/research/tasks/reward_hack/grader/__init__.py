"""Programs written by a model, run as what they are: hostile. See `service.Grader`."""

from research.tasks.reward_hack.grader.program import Built, Limits, Program, Test, Verdict
from research.tasks.reward_hack.grader.service import Grader

__all__ = ["Built", "Grader", "Limits", "Program", "Test", "Verdict"]
