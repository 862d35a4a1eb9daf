"""Metrics and weightings for `slow_reference`, pair by pair and row by row."""

import math
from typing import Any

import torch
from torch import Tensor

from slow_maps import name, schedule
from slow_rows import Row


def distances(metric: Any, shown: list[Tensor], wanted: list[Tensor], rows: list[Row]) -> list[Tensor]:
    wanted = [each.detach() for each in wanted]
    if name(metric) == "KernelMMD":
        return discrepancies(metric, shown, wanted, rows)
    found = []
    for a, b in zip(shown, wanted, strict=True):
        square, d = (a - b).square().sum(), a.numel()
        if name(metric) == "SquaredError":
            found.append(square if metric.reduce == "sum" else square / d)
        else:
            c = 0.00054 * math.sqrt(d) if metric.c is None else metric.c
            found.append(0 * square if c == 0 and float(square.detach()) == 0 else torch.sqrt(square + c**2) - c)
    return found


def discrepancies(metric: Any, shown: list[Tensor], wanted: list[Tensor], rows: list[Row]) -> list[Tensor]:
    """MMD² of each group, pair by pair."""
    found: list[Tensor] = []
    m = metric.group
    for first in range(0, len(rows), m):
        row = rows[first]
        t, _, r = row.times
        b = float(row.student.jump(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), t, r).abs())

        def kernel(x: Tensor, y: Tensor, scale: float = 1 / b if metric.bandwidth == "output" else 1.0) -> Tensor:
            square = (x - y).square().sum()
            if metric.kernel == "linear":
                return -square
            near = float(square.detach()) <= metric.epsilon**2
            distance = torch.full_like(square, metric.epsilon) if near else torch.sqrt(square)
            return -distance if metric.kernel == "energy" else torch.exp(-scale * distance / x.numel())

        ours, theirs = shown[first : first + m], wanted[first : first + m]
        value = torch.zeros((), dtype=torch.float64)
        for i in range(m):
            for j in range(m):
                value = value - 2 * kernel(ours[i], theirs[j]) / m**2
                if i != j or not metric.unbiased:
                    pairs = m * (m - 1) if metric.unbiased else m**2
                    value = value + (kernel(ours[i], ours[j]) + kernel(theirs[i], theirs[j])) / pairs
        found += [value] * m
    return found


def weighted(part: Any, errors: list[Tensor], rows: list[Row]) -> list[Tensor]:
    """One loss a row."""
    match name(part):
        case "Unweighted":
            return errors
        case "Product":
            for each in part.parts:
                errors = weighted(each, errors, rows)
            return errors
        case "Adaptive":
            return [e / (e.detach() + part.c) ** part.power for e in errors]
        case "Variational":
            logs = []
            for row in rows:
                t, _, r = row.times
                _, time, second = row.student.inputs(row.x_t, t, r)
                logs.append(row.student.network.log_variance(time, second, row.seen)[0])
            return [torch.exp(-log) * e + log for log, e in zip(logs, errors, strict=True)]
        case "ByTime":
            return [e * by_time(part, row) for e, row in zip(errors, rows, strict=True)]
        case "Boundary":
            low = [float(row.times[1]) < part.at for row in rows]
            share = sum(low) / len(low) if part.share is None else part.share
            return [e * (part.weight / share if b else 1 / (1 - share)) for e, b in zip(errors, low, strict=True)]
    raise NotImplementedError(name(part))


def by_time(part: Any, row: Row) -> float:
    """The weight of a row's times."""
    t, s, r = (float(each) for each in row.times)
    model, d = row.student, row.student.sigma_data
    alpha, sigma, d_alpha, d_sigma = (float(each) for each in schedule(model.path, row.times[0]))
    sigma_s = float(schedule(model.path, row.times[1])[1])
    one = torch.ones(1, 1, dtype=torch.float64)
    b = abs(float(model.jump(0 * one, one, row.times[0], row.times[2])))
    match part.rule:
        case "inverse-step":
            return 1 / (sigma - sigma_s)
        case "inverse-root-step":
            return (sigma - sigma_s) ** -0.5
        case "inverse-gap":
            return (t - r) ** -2
        case "inverse-output":
            return 1 / b
        case "inverse-output-square":
            return b**-2
        case "inverse-variance":
            return sigma**-2
        case "share":
            return (t - s) / (t - r) if s < t else 1.0
        case "gap-over-step":
            return (t - r) / (t - s) if s < t else 1.0
        case "edm":
            return 1 / d**2 + alpha**2 / sigma**2
        case "inverse-sine":
            return 4 / math.sin(1.57 * t)
        case "imm":
            snr = (alpha * d / sigma) ** 2
            gate = 1 / (1 + snr * math.exp(-part.bias))  # sigmoid(bias − λ)
            rate = 2 * (alpha * d_sigma - sigma * d_alpha) / sigma  # −α λ'
            return 0.5 * gate * rate * alpha ** (part.power - 1) / (alpha**2 + (sigma / d) ** 2)
    raise NotImplementedError(part.rule)
