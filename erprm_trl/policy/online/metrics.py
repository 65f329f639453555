"""Metrics of the step trainers that stay on the device until they are logged, so that the device does not wait."""

from collections.abc import Mapping

import torch
from accelerate.utils import gather_object
from torch import Tensor


def read_metrics(metrics: Mapping[str, list[float | Tensor]]) -> None:
    """
    Replaces the tensors among the values of metrics by floats, with a single copy to the host.

    Args:
        metrics (`Mapping[str, list]`):
            Values since the last log, by name: floats and scalar tensors.
    """
    places = [(values, index) for values in metrics.values() for index in range(len(values))]
    places = [(values, index) for values, index in places if isinstance(values[index], Tensor)]
    if places:
        read = torch.stack([values[index].detach().float() for values, index in places]).tolist()
        for (values, index), value in zip(places, read, strict=True):
            values[index] = value


def mean_over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """Means of metrics over the processes that have them. All processes must call it."""
    gathered = gather_object([dict(metrics)])
    names = sorted({name for own in gathered for name in own})
    values = {name: [own[name] for own in gathered if name in own] for name in names}
    return {name: sum(parts) / len(parts) for name, parts in values.items()}
