"""How good are probabilities? Two measures, in numpy, because the demo must not need what training needs."""

import numpy as np
import numpy.typing as npt


def auc(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Return how often a random late flight scores above a random punctual one (a tie counts half).

    This is the Mann-Whitney U statistic over the number of pairs. Only the ranks of the scores matter, so it compares
    a probability with a delay in minutes. NaN unless both labels occur.
    """
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    late = int(labels.sum())
    punctual = len(labels) - late
    if not late or not punctual:
        return float("nan")
    return float((ranks[labels].sum() - late * (late + 1) / 2) / (late * punctual))


def log_loss(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> float:
    """Return the mean negative log-likelihood, in nats."""
    of_label = np.where(labels, probabilities, 1 - probabilities.astype(np.float64))
    return float(-np.log(np.clip(of_label, 1e-12, 1.0)).mean())
