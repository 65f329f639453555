"""Counts the operations of a training run that make an accelerator wait for the host, on a machine without one.

A GPU waits when the host needs a value (`item`, `bool`, `tolist`, `cpu`), when the shape of a result depends on values
(boolean indexing, `nonzero`), and when values are copied from the host (`torch.tensor` on the device). On a CPU these
operations run in the same way, so they can be counted. Data loading is left out, because it works on the host anyway.
"""

import sys
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback


aten = torch.ops.aten
READS = {aten._local_scalar_dense: "item", aten.equal: "equal", aten.is_nonzero: "bool"}
SHAPES = {aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten.unique_consecutive, aten.bincount}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.cpu: "cpu", torch.Tensor.numpy: "numpy"}
# Values that stay on the host on every machine.
ON_THE_HOST = ("/torch/utils/data/", "/accelerate/data_loader.py", "/torch/random.py", "/collator.py")
# Functions that work on the host: with lists, or with values that were copied with `cpu`.
COPIES_FIRST = "/reward_model/trainer/metrics.py"
# `ScoredBatch.tensors` copies from pinned memory, for which a GPU does not wait.
HOST_FUNCTIONS = {"StepRewardFunction.__call__", "_log_on_host", "ScoredBatch.tensors"}
THIS_FILE = __file__


class Synchronisations(TorchDispatchMode):
    """
    Context in which synchronisations are counted.

    Attributes:
        kinds (`Counter`): number of synchronisations by kind. Copies from the host are `"copy"`.
        sites (`Counter`): the same by kind, file and line of the Python code, innermost outside of torch.
    """

    def __init__(self):
        super().__init__()
        self.kinds, self.sites = Counter(), Counter()
        self._methods = _Methods(self)

    def __enter__(self):
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in READS:
            self.note(READS[packet])
        elif packet in SHAPES or (packet is aten.repeat_interleave and not (kwargs or {}).get("output_size")):
            self.note(packet.__name__)
        elif packet in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.note("mask")
        elif packet is aten.lift_fresh:
            self.note("copy")
        return func(*args, **(kwargs or {}))

    def note(self, kind):
        """Counts a synchronisation at the current line, unless it belongs to data loading."""
        frame, site = sys._getframe(1), None
        while frame is not None:
            path = frame.f_code.co_filename
            if any(part in path for part in ON_THE_HOST) or (COPIES_FIRST in path and kind != "cpu"):
                return
            if frame.f_code.co_qualname in HOST_FUNCTIONS:
                return
            if site is None and path != THIS_FILE and "/torch/" not in path:
                site = f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
            frame = frame.f_back
        self.kinds[kind] += 1
        self.sites[f"{kind} {site}"] += 1


class _Methods(TorchFunctionMode):
    """Notes methods that copy whole tensors to the host, which are no operations on a CPU."""

    def __init__(self, counts):
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS:
            self._counts.note(METHODS[func])
        return func(*args, **(kwargs or {}))


class PerUpdate(TrainerCallback):
    """
    Collects the counts of each update of a trainer.

    Attributes:
        updates (`list[Counter]`): synchronisations by site, of each update. The first one includes checks that are
            made once.
    """

    def __init__(self, counts):
        self.counts, self.updates, self._before = counts, [], Counter()

    def on_log(self, args, state, control, **kwargs):
        self.note()

    def on_step_end(self, args, state, control, **kwargs):
        self.updates.append(Counter())
        self.note()

    def note(self):
        if self.updates:
            self.updates[-1] += self.counts.sites - self._before
            self._before = self.counts.sites.copy()


def count_updates(trainer):
    """Trains and returns the synchronisations by site of each update, with the log that follows it."""
    counts = Synchronisations()
    callback = PerUpdate(counts)
    trainer.add_callback(callback)
    with counts:
        trainer.train()
    return callback.updates
