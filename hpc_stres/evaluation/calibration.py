"""How far probabilities are to be believed: expected calibration error, reliability, a fitted
temperature. Pure.

A temperature divides the logits before the softmax. It is fitted on held-out training videos, never
on test videos, and it never changes an answer: the class that is answered is always the highest
logit as it was scored.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS = 15
# Coldest and hottest temperature: where every held-out answer is right, colder is
# better without end.
COLDEST, HOTTEST = 0.01, 100.0


def probabilities(logits: Array, temperature: float = 1.0) -> Array:
    """Softmax of logits over the temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_loss(logits: Array, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true classes; finite where a probability
    has rounded to 0."""
    scaled = np.asarray(logits, np.float64) / temperature
    most = scaled.max(axis=1)
    normaliser = most + np.log(np.exp(scaled - most[:, None]).sum(axis=1))
    return float((normaliser - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """The temperature of least log-likelihood loss, which is convex in its inverse; between
    COLDEST and HOTTEST."""
    logits = np.asarray(logits, np.float64)
    true = logits[np.arange(len(labels)), labels]

    def slope(temperature: float) -> float:
        """Of the loss by the inverse temperature: what the softmax expects of the logit, less
        the true class's."""
        return float(((probabilities(logits, temperature) * logits).sum(axis=1) - true).mean())

    low, high = np.log(COLDEST), np.log(HOTTEST)
    # A positive slope asks for a smaller inverse: a hotter temperature.
    if slope(COLDEST) <= 0:
        return COLDEST
    if slope(HOTTEST) >= 0:
        return HOTTEST
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def reliability(confidence: Array, hits: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Equal bins of confidence, each (low, high]: how many answers, how sure and how
    often right they are."""
    edges = np.arange(BINS + 1) / BINS
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    rows = []
    for number in range(BINS):
        inside = place == number
        count = int(inside.sum())
        rows.append({
            "low": float(edges[number]), "high": float(edges[number + 1]), "videos": count,
            "confidence": float(confidence[inside].mean()) if count else None,
            "accuracy": float(hits[inside].mean()) if count else None,
        })  # fmt: skip
    return rows


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """Expected calibration error: distance of accuracy from confidence, averaged over the
    answers of the bins."""
    total = sum(row["videos"] for row in bins)
    return float(
        sum(
            row["videos"] * abs(row["accuracy"] - row["confidence"])
            for row in bins
            if row["videos"]
        )
        / total
    )


def measure(logits: Array, labels: NDArray[np.int64], temperature: float = 1.0) -> dict[str, Any]:
    """Calibration of answers at a temperature; answers are those of the logits as
    they were scored."""
    shares = probabilities(logits, temperature)
    answers = np.asarray(logits).argmax(axis=1)
    rows = np.arange(len(labels))
    confidence = shares[rows, answers]
    truth = np.zeros_like(shares)
    truth[rows, labels] = 1.0
    bins = reliability(confidence, answers == labels)
    return {
        "ece": calibration_error(bins), "nll": log_loss(logits, labels, temperature),
        "brier": float(((shares - truth) ** 2).sum(axis=1).mean()), "confidence": float(confidence.mean()),
        "bins": bins,
    }  # fmt: skip


def with_temperature(
    logits: Array, labels: NDArray[np.int64], held_out: tuple[Array, NDArray[np.int64]] | None
) -> dict[str, Any]:
    """Calibration of test answers, and again at the temperature that held-out
    training videos ask for."""
    calibration: dict[str, Any] = {
        **measure(logits, labels),
        "temperature": None,
        "scaled": None,
        "fitted_on": None,
    }
    if held_out is not None and len(held_out[1]):
        temperature = fit_temperature(*held_out)
        calibration["temperature"] = temperature
        calibration["scaled"] = measure(logits, labels, temperature)
        calibration["fitted_on"] = {"videos": len(held_out[1])}
    return calibration
