"""Weights that make up for what was taken away, from second moments of patches (METHOD, section 7).

To import this is to import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# d of METHOD 7: this times the mean variance of a patch entry.
RIDGE = 0.01
# Variance of an input, of its mean square, below which it is constant.
_CONSTANT = 1e-12
# Factors of the step from a filter's largest weight that are tried for few bits.
SHRINKS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36, 0.3)


@dataclass(eq=False)
class Moments:
    """Sums over patches u and outputs y of a group of filters, in float64.

    Attributes
    ----------
    count : int
        Patches.
    u, y : tensor
        Sums, shapes (fan_in,) and (filters,).
    uu, uy : tensor
        Sums of products, shapes (fan_in, fan_in) and (fan_in, filters).
    """

    count: int
    u: torch.Tensor
    y: torch.Tensor
    uu: torch.Tensor
    uy: torch.Tensor

    @classmethod
    def empty(cls, fan_in: int, filters: int) -> Moments:
        """Begin with nothing seen."""
        wide = {"dtype": torch.float64}
        return cls(
            0,
            torch.zeros(fan_in, **wide),
            torch.zeros(filters, **wide),
            torch.zeros(fan_in, fan_in, **wide),
            torch.zeros(fan_in, filters, **wide),
        )

    def add(self, u: torch.Tensor, y: torch.Tensor) -> None:
        """Add patches, shape (patches, fan_in), and what the whole network gives for them."""
        u, y = u.double().cpu(), y.double().cpu()
        self.count += len(u)
        self.u += u.sum(0)
        self.y += y.sum(0)
        self.uu += u.T @ u
        self.uy += u.T @ y

    def centred(self, *, about_mean: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the second moments of u, and of u with y, about their means or about 0."""
        c, b = self.uu / self.count, self.uy / self.count
        if not about_mean:
            return c, b
        mean_u, mean_y = self.u / self.count, self.y / self.count
        off_c, off_b = c - torch.outer(mean_u, mean_u), b - torch.outer(mean_u, mean_y)
        # An input that never varies leaves rounding, in which a matrix may have any sign.
        constant = off_c.diagonal() <= _CONSTANT * c.diagonal()
        off_c[constant], off_c[:, constant], off_b[constant] = 0, 0, 0
        return off_c, off_b

    def shift(self, weights: torch.Tensor) -> torch.Tensor:
        """Give the mean of y that weights, shape (filters, fan_in), leave to a bias."""
        return (self.y - weights @ self.u) / self.count


def least_squares(
    c: torch.Tensor, b: torch.Tensor, old: torch.Tensor, stays: torch.Tensor, /
) -> torch.Tensor:
    """Fit the weights that stay.

    Parameters
    ----------
    c, b : tensor of float64, shapes (fan_in, fan_in) and (fan_in, filters)
        Second moments.
    old : tensor of float64, shape (filters, fan_in)
        Weights that the ridge draws to.
    stays : tensor of bool, shape (filters, fan_in)

    Returns
    -------
    tensor of float64, shape (filters, fan_in)
        0 where nothing stays.
    """
    ridge = RIDGE * c.diagonal().mean()
    found = torch.zeros_like(old)
    if not ridge > 0:  # the layer sees nothing: no weight is better than another
        return torch.where(stays, old, found)
    whole = c + ridge * torch.eye(len(c), dtype=c.dtype)
    wanted = b + ridge * old.T
    kinds, which = torch.unique(stays, dim=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        at, filters = kind.nonzero()[:, 0], (which == number).nonzero()[:, 0]
        if len(at):
            factor = torch.linalg.cholesky(whole[at][:, at])
            fit = torch.cholesky_solve(wanted[at][:, filters], factor)
            found[filters.unsqueeze(1), at] = fit.T
    return found


def of_rank(c: torch.Tensor, weights: torch.Tensor, rank: int, /) -> torch.Tensor:
    """Take the matrix of a rank that gives the outputs nearest to those of some weights.

    Reduced-rank regression: the outputs' main directions are kept.
    """
    outputs = weights @ c @ weights.T
    _, directions = torch.linalg.eigh(outputs)  # in rising order
    kept = directions[:, -rank:]
    return kept @ (kept.T @ weights)


def rounded(
    c: torch.Tensor,
    target: torch.Tensor,
    most: int,
    steps: torch.Tensor,
    stays: torch.Tensor | None = None,
    /,
) -> torch.Tensor:
    """Round weights to few values, each rounding made up for by the weights behind it (GPTQ).

    E. Frantar et al., *GPTQ* (ICLR 2023); of `SHRINKS` times the step each filter takes the one
    whose outputs are nearest.

    Parameters
    ----------
    c : tensor of float64, shape (fan_in, fan_in)
        Second moments of the patches.
    target : tensor of float64, shape (filters, fan_in)
        Weights to be near to, in outputs.
    most : int
        Weights are whole multiples of the step, from -most to most.
    steps : tensor of float64, shape (filters,)
        Of a filter's largest weight; 0 of a filter that is 0.
    stays : tensor of bool, optional
        Weights elsewhere stay 0.
    """
    ridge = RIDGE * c.diagonal().mean()
    if not ridge > 0:
        ridge = torch.ones((), dtype=c.dtype)
    whole = c + ridge * torch.eye(len(c), dtype=c.dtype)
    order = whole.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(whole[order][:, order])
    factor = torch.linalg.cholesky(inverse, upper=True)
    best = torch.zeros_like(target)
    least = torch.full((len(target),), torch.inf, dtype=c.dtype)
    for shrink in SHRINKS:
        step = steps * shrink
        made = torch.empty_like(target)
        made[:, order] = _rounded(
            target[:, order], factor, step, most, None if stays is None else stays[:, order]
        )
        off = made - target
        cost = ((off @ whole) * off).sum(1)
        better = cost < least
        best[better], least[better] = made[better], cost[better]
    return best


def _rounded(
    weights: torch.Tensor,
    factor: torch.Tensor,
    step: torch.Tensor,
    most: int,
    stays: torch.Tensor | None,
) -> torch.Tensor:
    left, made = weights.clone(), torch.zeros_like(weights)
    safe = torch.where(step > 0, step, 1.0)
    for at in range(left.shape[1]):
        levels = (left[:, at] / safe).round().clamp(-most, most)
        made[:, at] = torch.where(step > 0, levels * step, 0.0)
        if stays is not None:
            made[:, at] *= stays[:, at]
        error = (left[:, at] - made[:, at]) / factor[at, at]
        left[:, at + 1 :] -= torch.outer(error, factor[at, at + 1 :])
    return made
