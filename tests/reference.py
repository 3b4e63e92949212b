"""The papers' updates in NumPy float64, written from the formulas."""

import numpy as np


class Sgd:
    """Plain gradient steps, with heavy-ball momentum where it is not 0."""

    def __init__(self, momentum=0.0):
        self.momentum, self.trace = momentum, {}

    def __call__(self, name, g, lr):
        self.trace[name] = g + self.momentum * self.trace.get(name, 0.0)
        return -lr * self.trace[name]


class Adam:
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, b1=0.9, b2=0.999, eps=1e-8):
        self.b1, self.b2, self.eps = b1, b2, eps
        self.m, self.v, self.t = {}, {}, {}

    def __call__(self, name, g, lr):
        t = self.t[name] = self.t.get(name, 0) + 1
        m = self.m[name] = self.b1 * self.m.get(name, 0.0) + (1 - self.b1) * g
        v = self.v[name] = self.b2 * self.v.get(name, 0.0) + (1 - self.b2) * g * g
        mean = m / (1 - self.b1**t)
        return -lr * mean / (np.sqrt(v / (1 - self.b2**t)) + self.eps)


def volumize(w, volume, alpha):
    """One weight at a time, from the definition of the wall."""
    t = w.copy()
    for i in np.ndindex(w.shape):
        if abs(w[i]) > volume:
            t[i] = np.sign(w[i]) * (volume + alpha * (abs(w[i]) - volume))
            if alpha <= 0:
                t[i] = np.clip(t[i], -volume, volume)
    return t


def lp_decay(before, w, k, p, zeros="sticky", reference="before"):
    """One weight at a time: w / (1 + k |r|^(p-2)), with its limits written out."""
    t = w.copy()
    for i in np.ndindex(w.shape):
        r = abs(before[i] if reference == "before" else w[i])
        if k == 0:
            continue
        if r > 0:
            with np.errstate(over="ignore"):  # to infinity, so the factor is 0
                t[i] = w[i] / (1 + k * np.float64(r) ** (p - 2.0))
        elif p == 2:
            t[i] = w[i] / (1 + k)
        elif p < 2:
            t[i] = 0.0 if zeros == "sticky" else w[i]
    return t


def lp_norm_map(size, k, p):
    """The minimiser of k z^p + (z - size)^2 / 2 over z >= 0, by bisection."""
    if p == 0:
        return size if size**2 / 2 > k else 0.0
    low, high = (k * p * (1 - p)) ** (1 / (2 - p)), size  # the slope grows from low on
    if low + k * p * low ** (p - 1) >= size if low else k >= size:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        above = middle + k * p * middle ** (p - 1) > size
        low, high = (low, middle) if above else (middle, high)
    return low if k * low**p + (low - size) ** 2 / 2 < size**2 / 2 else 0.0


def group_prox(units, k, p):
    """Units as lists of (array, index); the map of k n^(1 - p / 2) ||x||^p."""
    for unit in units:
        n = sum(np.size(x[i]) for x, i in unit)
        norm = np.sqrt(sum((x[i] ** 2).sum() for x, i in unit))
        left = lp_norm_map(norm, k * n ** (1 - p / 2), p)
        for x, i in unit:
            x[i] = x[i] * (left / norm if norm > 0 else 0.0)


def path_prox(units, k, normalize, before=None):
    """Units as (incoming, bias, outgoing) lists of views; changed in place.

    ``incoming``, ``bias`` and ``outgoing`` are lists of (array, index) that together
    address the weights of one unit, ``before`` the same ones before the step.
    """
    {"project": _projected, "rescale": _rescaled, "none": _descended}[normalize](
        units, k, before
    )


def _norm(side):
    return np.sqrt(sum((x[i] ** 2).sum() for x, i in side))


def _times(side, factor):
    for x, i in side:
        x[i] = x[i] * factor


def _projected(units, k, before):
    for incoming, bias, outgoing in units:
        a = _norm(incoming) or 1.0
        _times(incoming + bias, 1 / a)
        v = _norm(outgoing)
        _times(outgoing, max(0.0, 1 - k / v) if v > 0 else 0.0)


def _rescaled(units, k, before):
    for incoming, bias, outgoing in units:
        a = _norm(incoming)
        if path_shrunk(a * _norm(outgoing), k) > 0:
            _times(incoming + bias, 1 / a)
            _times(outgoing, a)
    norms = [_norm(incoming) * _norm(outgoing) for incoming, _, outgoing in units]
    for (_, _, outgoing), t in zip(units, norms):
        _times(outgoing, path_shrunk(t, k) / t if t > 0 else 0.0)


def path_shrunk(t, k):
    """The z >= 0 with (z + k) (1 + k z) = t, by halving an interval."""
    low, high = 0.0, t
    if t <= k:
        return 0.0
    for _ in range(200):
        z = (low + high) / 2
        low, high = (z, high) if (z + k) * (1 + k * z) < t else (low, z)
    return (low + high) / 2


def _descended(units, k, before):
    norms = [(_norm(incoming), _norm(outgoing)) for incoming, _, outgoing in before]
    for (incoming, _, _), (was, _, _), (a, v) in zip(units, before, norms):
        if a > 0:
            for (x, i), (y, j) in zip(incoming, was):
                x[i] = x[i] - min(k * v / a, 1) * y[j]
    sizes = [_norm(outgoing) for _, _, outgoing in units]
    for (_, _, outgoing), (a, _), v in zip(units, norms, sizes):
        _times(outgoing, max(0.0, 1 - k * a / v) if v > 0 else 0.0)
