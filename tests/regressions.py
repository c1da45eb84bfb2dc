"""The statistics of statsmodels that tests hold ours to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.regression.linear_model import OLS


@dataclass(frozen=True)
class ClusteredMean:
    """A mean with what a regression on a constant says of it."""

    mean: float
    error: float
    p: float
    low: float
    high: float


def clustered_mean(values: Sequence[float], clusters: Sequence[int]) -> ClusteredMean:
    """Errors clustered, t distributed with one degree of freedom less than clusters."""
    model = OLS(np.asarray(values), np.ones(len(values)))
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": np.asarray(clusters)}, use_t=True)
    low, high = fit.conf_int()[0]
    return ClusteredMean(*map(float, (fit.params[0], fit.bse[0], fit.pvalues[0], low, high)))
