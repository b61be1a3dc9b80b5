"""Derivatives by central differences of five points, in float64."""

from collections.abc import Callable


def derivative(function: Callable[[float], float], step: float) -> float:
    """The derivative of a function of one number at 0; the error is of order step^4."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)
