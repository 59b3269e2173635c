"""What an earlier exercise of the third assignment comes to, for the check of a later one."""

from __future__ import annotations

import torch


def ridge_scores(train, labels, test, penalty):
    middle, level = train.mean(0), labels.mean()
    x = train - middle
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (labels - level))
    return (test - middle) @ weights + level
