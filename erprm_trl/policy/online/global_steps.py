"""The step scores and outcomes of a generation over all processes, from which advantages are computed."""

from dataclasses import dataclass

from torch import Tensor

from ...functional.advantages import prefix_values


@dataclass(frozen=True, eq=False)
class GlobalSteps:
    """
    The steps of the completions of all processes. Its length is the number of this process's completions.

    Attributes:
        scores (`torch.Tensor`):
            Step scores of all processes, of shape (N, S).
        mask (`torch.Tensor`):
            Mask of shape (N, S), True at real steps.
        outcomes (`torch.Tensor`):
            Outcomes of shape (N,), NaN if no other reward function returned a reward.
        wrong (`torch.Tensor`):
            Booleans of shape (N,), True for solutions with a wrong answer. Without graded answers, solutions whose
            outcome is 0 or negative count as wrong.
        local (`slice`):
            Rows of this process.
        token_ends (`torch.Tensor`):
            Index of each step's last token in this process's completions, of shape (B, S).
        rewards (`torch.Tensor`):
            Rewards of all processes, of shape (N, number of reward functions).
    """

    scores: Tensor
    mask: Tensor
    outcomes: Tensor
    wrong: Tensor
    local: slice
    token_ends: Tensor
    rewards: Tensor

    def __len__(self) -> int:
        return len(self.token_ends)

    @property
    def local_mask(self) -> Tensor:
        """Mask of this process's completions, of shape (B, S) and True at real steps."""
        return self.mask[self.local]

    def solution_scores(self, aggregation: str) -> Tensor:
        """One score per completion, of shape (N,) and 0 for a completion without steps."""
        last = (self.mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        return prefix_values(self.scores, self.mask, aggregation).gather(1, last).squeeze(1)
