"""How near predicted values are to the true ones."""

import numpy as np
from numpy.typing import NDArray

from medtl_train.scoring.bootstrap import Weights

Values = NDArray[np.float64]

_NORMAL_95 = 1.959963984540054  # the 0.975 quantile of the normal distribution


def agreement(values: Values, predicted: Values, weights: Weights) -> dict[str, float]:
    """Return the figures of a regression; NaN where one is not defined.

    - ``mae``, ``rmse``, ``bias``: mean absolute error, root of the mean square error, mean error
      (predicted minus true), in the unit of the values;
    - ``r2``: 1 - squared errors / squared distances from the mean; below 0 the mean does better;
    - ``pearson``: correlation, which a wrong scale or offset does not lower;
    - ``concordance``: that times how near the line is to the diagonal (Lin, Biometrics 1989).

    Parameters
    ----------
    values, predicted
        True and predicted, (N,).
    weights
        How often each counts, (N,).
    """
    if not weights.any():
        return dict.fromkeys(("mae", "rmse", "r2", "pearson", "concordance", "bias"), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = weights / weights.sum()
        errors = predicted - values
        centred, other = values - share @ values, predicted - share @ predicted
        variance, of_predicted = share @ centred**2, share @ other**2
        covariance, bias = share @ (centred * other), share @ errors
        found = {
            "mae": share @ np.abs(errors),
            "rmse": np.sqrt(share @ errors**2),
            "r2": 1 - (share @ errors**2) / variance,
            "pearson": covariance / np.sqrt(variance * of_predicted),
            "concordance": 2 * covariance / (variance + of_predicted + bias**2),
            "bias": bias,
        }
    return {name: float(value) for name, value in found.items()}


def limits_of_agreement(values: Values, predicted: Values, weights: Weights) -> dict[str, float]:
    """Return between which errors 95 % lie, if they are normal (Bland and Altman, Lancet 1986)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total, errors = weights.sum(), predicted - values
        bias = weights @ errors / total
        spread = np.sqrt(weights @ (errors - bias) ** 2 / (total - 1))
    low, high = bias - _NORMAL_95 * spread, bias + _NORMAL_95 * spread
    return {"agreement_low": float(low), "agreement_high": float(high)}
