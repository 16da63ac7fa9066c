"""The formula of Diffusion-DPO, tensors in and out.

METHOD.md §5; FinPercep-RM supplement Eq. 3; Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference
Optimization", Eq. 14.
"""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F

__all__ = ['dpo_objective']

TIE = 1e-3


def dpo_objective(
    winner: torch.Tensor,
    loser: torch.Tensor,
    winner_reference: torch.Tensor,
    loser_reference: torch.Tensor,
    beta: float,
    weights: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    """`-w log sigmoid(margin)`, `margin = -beta / 2 ((e_w - e_w_ref) - (e_l - e_l_ref))`, per pair.

    Args:
        winner: (P,) error of the policy on the winners, its mean over C, H, W (so beta includes the number of
            timesteps).
        loser: of the policy on the losers, at the same noise and timestep.
        winner_reference: of the reference on the winners.
        loser_reference: of the reference on the losers.
        beta: how fast the loss saturates; larger stays nearer to the reference.
        weights: (P,) w; None: ones.

    Returns:
        the loss of each pair, (P,), and diagnostics, detached scalars: `implicit_accuracy`, the share of pairs with a
            margin above 0, where a tie is half a pair; mean `margin`; mean error on winners and on losers, of the policy
            and (`*_change`) less that of the reference. A margin within 1e-3 is a tie, since it is a difference of
            errors, rounded, times beta.

    >>> loss, seen = dpo_objective(*torch.tensor([[0.1], [0.3], [0.2], [0.2]]), beta=10.0)
    >>> round(loss.item(), 4), round(seen['margin'].item(), 4), seen['implicit_accuracy'].item()
    (0.3133, 1.0, 1.0)
    """
    winner, loser = winner.float(), loser.float()
    winner_change, loser_change = winner - winner_reference.float(), loser - loser_reference.float()
    margin = -0.5 * beta * (winner_change - loser_change)
    loss = -F.logsigmoid(margin)
    diagnostics = {
        'implicit_accuracy': (margin > TIE).float().mean() + 0.5 * (margin.abs() <= TIE).float().mean(),
        'margin': margin.mean(),
        'error_winner': winner.mean(),
        'error_loser': loser.mean(),
        'error_winner_change': winner_change.mean(),
        'error_loser_change': loser_change.mean(),
    }
    loss = loss if weights is None else loss * weights.float()
    return loss, {name: value.detach() for name, value in diagnostics.items()}
