"""Statistics of routed experts: those with few rows are completed by what all experts of their layer read."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache

import torch

from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance, SketchedCovariance
from tlora.calibration.gradient import Gradient
from tlora.models.experts import is_expert, parameter_name

PRIOR_ROWS = 16
"""Rows of the pool that each expert is given in addition to its own.

With ``n`` rows of its own an expert keeps the weight ``n / (n + 16)``: one half at 16 rows and 94 % at 256. One without
rows gets the pool's directions. Of 16 to 1,024 rows, 16 captured the most: docs/results/experts.md.
"""

logger = logging.getLogger(__name__)


class ExpertPool:
    """Statistics of a calibration by module; those of experts have ``prior_rows`` further rows of the pool.

    The pool of a parameter is the sum over its experts. Each row of it counts ``prior_rows / n``, with ``n`` its rows.
    Statistics of linear layers are those of the calibration.
    """

    def __init__(self, calibration: Calibration, prior_rows: float = PRIOR_ROWS) -> None:
        self.calibration, self.prior_rows = calibration, prior_rows
        self._experts: dict[str, list[str]] = defaultdict(list)
        for name in filter(is_expert, calibration.names):
            self._experts[parameter_name(name)].append(name)
        self._pooled_moment = lru_cache(maxsize=1)(self._pool_moment)
        self._pooled_fisher = lru_cache(maxsize=1)(self._pool_fisher)
        self._pooled_gradient = lru_cache(maxsize=1)(self._pool_gradient)

    def moment(self, first: str, centered: bool) -> Covariance:
        """The covariance, or the second moment, of an input, by the first module that reads it."""
        own = self._own_moment(first, centered)
        return self._complete(own, self._pooled_moment(parameter_name(first), centered)) if is_expert(first) else own

    def fisher(self, name: str) -> Covariance:
        """The Fisher matrix of a module."""
        assert self.calibration.fisher is not None
        own = self.calibration.fisher[name]
        return self._complete(own, self._pooled_fisher(parameter_name(name))) if is_expert(name) else own

    def gradient(self, name: str) -> Gradient:
        """The mean gradient of a module."""
        assert self.calibration.gradient is not None
        own = self.calibration.gradient[name]
        if not is_expert(name):
            return own
        pooled = self._pooled_gradient(parameter_name(name))
        part = self.prior_rows / max(sum(map(self.rows, self._experts[parameter_name(name)])), 1)
        columns = None
        if own.range is not None and pooled.range is not None:
            columns = own.range + part * pooled.range
        return replace(own, corange=own.corange + part * pooled.corange, range=columns)

    def rows(self, name: str) -> int:
        """The number of rows that a module read: tokens that count and, of an expert, were routed to it."""
        covariance = self.calibration.covariances[self.calibration.shared[name]]
        return covariance.rank_bound + (0 if covariance.means is None else covariance.means.count)

    def _complete(self, own: Covariance, pooled: Covariance) -> Covariance:
        return _add(own, [pooled], self.prior_rows / max(pooled.rank_bound, 1))

    def _own_moment(self, first: str, centered: bool) -> Covariance:
        covariance = self.calibration.covariances[first]
        return covariance if centered else covariance.second_moment()

    def _pool_moment(self, parameter: str, centered: bool) -> Covariance:
        return _sum([self._own_moment(name, centered) for name in self._experts[parameter]])

    def _pool_fisher(self, parameter: str) -> Covariance:
        assert self.calibration.fisher is not None
        return _sum([self.calibration.fisher[name] for name in self._experts[parameter]])

    def _pool_gradient(self, parameter: str) -> Gradient:
        assert self.calibration.gradient is not None
        members = [self.calibration.gradient[name] for name in self._experts[parameter]]
        ranges = [member.range for member in members if member.range is not None]
        return replace(
            members[0],
            corange=torch.stack([member.corange for member in members]).sum(0),
            range=torch.stack(ranges).sum(0) if ranges else None,
        )


def warn_of_unused_experts(calibration: Calibration) -> None:
    """Log the experts that no counted token was routed to."""
    rows = ExpertPool(calibration).rows
    unused = [name for name in filter(is_expert, calibration.names) if not rows(name)]
    if unused:
        experts = sum(map(is_expert, calibration.names))
        logger.warning(
            "no token was routed to %d of %d experts (e.g. %s): their directions are those of all experts of the "
            "layer; more samples may reach them",
            *(len(unused), experts, unused[0]),
        )


def _sum(members: list[Covariance]) -> Covariance:
    return _add(members[0], members[1:], 1.0)


def _add(first: Covariance, others: list[Covariance], factor: float) -> Covariance:
    total = first.total.clone()
    for other in others:
        total.add_(other.total, alpha=factor)
    result = replace(first, total=total, rank_bound=first.rank_bound + sum(other.rank_bound for other in others))
    if isinstance(result, SketchedCovariance):
        trace = sum(other.total_trace for other in others if isinstance(other, SketchedCovariance))
        return replace(result, total_trace=result.total_trace + factor * trace)
    return result
