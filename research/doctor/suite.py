"""The laws, and their examination."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import jax

from research import config
from research.doctor import execution, reduction, sharding, targets, visibility
from research.doctor.findings import Finding, Report
from research.doctor.sharding import Elsewhere
from research.doctor.subject import Subject
from research.parallel.mesh import axis_sizes
from research.settings import Settings


class Law(NamedTuple):
    """A law and how it is examined."""

    name: str
    check: Callable[[Subject], Iterator[Finding]]


LAWS = (
    Law(visibility.FUTURE, visibility.future),
    Law(visibility.TARGET, visibility.target),
    Law(visibility.PACKING, visibility.packing),
    Law(visibility.BACKENDS, visibility.agreement),
    Law(visibility.CACHE, visibility.cache),
    Law(targets.SPECIAL, targets.special),
    Law(targets.LOSS, targets.loss),
    Law(execution.ACCUMULATION, execution.accumulation),
    Law(execution.REMAT, execution.remat),
    Law(execution.SCAN, execution.scan),
    Law(execution.KERNELS, execution.kernels),
    Law(execution.TWICE, execution.twice),
)
# The last one needs several devices, and runs beside the others where there is one.
NAMES = (*(law.name for law in LAWS), sharding.SHARDED)


def examine(settings: Settings, only: Collection[str] = (), stage: Callable[[str], None] = lambda name: None) -> Report:
    """Examines the laws on the settings.

    A model that is too large for the first device is made smaller by the rule of `reduction.reduced`. Experts that
    compute in bfloat16 are examined in float32: there a rounding sends a token to another expert, and no two programs
    could be compared. Products of float32 are computed in full precision.

    Args:
      settings: what a run would be given.
      only: names of laws; none: all.
      stage: is told what is examined.

    Raises:
      UserError: the settings do not fit the devices or the tokenizer.
    """
    assert set(only) <= set(NAMES), only
    wanted = set(only or NAMES)
    devices = jax.devices()
    small = examined(settings, devices)
    several = len(devices) > 1
    with contextlib.ExitStack() as stack:
        if small.model.compute_dtype == "float32":
            stack.enter_context(jax.default_matmul_precision("highest"))
        elsewhere = None
        if sharding.SHARDED in wanted and not several:
            elsewhere = Elsewhere(small)
            stack.callback(elsewhere.stop)
        subject = Subject(small)
        stack.callback(subject.close)
        found: list[Finding] = []
        for law in LAWS:
            if law.name in wanted:
                stage(law.name)
                found += law.check(subject)
        if sharding.SHARDED in wanted:
            stage(sharding.SHARDED)
            if elsewhere is None:
                found += sharding.sharded(subject, len(devices), devices[0].device_kind)
            else:
                found += elsewhere.findings()
        facts = {
            "device": f"{len(devices)} x {devices[0].device_kind}",
            "objective": subject.objective.name,
            "architecture": small.model.architecture,
            "parameters": sum(parameter.size for parameter in subject.model.parameters().values()),
            "kernels": dict(subject.assembly.kernels.names),
            "compute_dtype": small.model.compute_dtype,
        }
    return Report(tuple(found), facts, _reductions(settings, small))


def examined(settings: Settings, devices: list[jax.Device]) -> Settings:
    """The settings that are examined: few rows, a model that fits.

    Raises:
      UserError: the configured mesh is not one of these devices, where there are several.
    """
    if len(devices) > 1:
        axis_sizes(settings.parallel, len(devices))
    shards = len(devices) if len(devices) > 1 else sharding.made_up_devices(settings)
    settings = reduction.prepared(settings, shards)
    if settings.model.num_experts and settings.model.compute_dtype != "float32":
        settings = reduction.changed(settings, {"model.compute_dtype": "float32"})
    return reduction.reduced(settings, reduction.budget(devices[0]), shards)


def _reductions(asked: Settings, small: Settings) -> dict[str, tuple[object, object]]:
    """Keys of model, data and tokenizer that were made smaller."""
    rooms = ("model.", "data.sequence_length", "data.raw_length", "tokenizer.")
    return {name: values for name, values in config.differences(asked, small).items() if name.startswith(rooms)}
