"""Loading a checkpoint, and believing it only when every digest is what was saved."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from research import trees
from research.checkpoint.agreement import first_reason, from_first_process
from research.checkpoint.digest import digests
from research.checkpoint.record import (
    STATE,
    DamagedError,
    Record,
    check_file_sizes,
    check_same_model,
    committed_steps,
    read_record,
    step_directory,
)
from research.errors import UserError

_log = logging.getLogger(__name__)

# Words in the errors of Orbax and TensorStore that say nothing about the files: nothing is given up because of them.
_NOT_DAMAGE = (
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "Permission denied",
    "Too many open files",
    "Out of memory",
)


def log_event(kind: str, fields: Mapping[str, Any]) -> None:
    """The default receiver of events: one log line each."""
    level = logging.INFO if kind in {"checkpoint", "checkpoint_cleaned"} else logging.WARNING
    _log.log(level, "%s: %s", kind, ", ".join(f"{name}={value}" for name, value in fields.items()))


def restore_parameters(
    directory: epath.PathLike,
    target_params: Any,
    step: int | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = log_event,
) -> tuple[Any, int]:
    """The parameters of a checkpoint alone, and their step; see `restore_parts`."""
    parts, found = restore_parts(directory, {"params": target_params}, step, on_event)
    return parts["params"], found


def restore_parts(
    directory: epath.PathLike,
    targets: Mapping[str, Any],
    step: int | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = log_event,
) -> tuple[dict[str, Any], int]:
    """Parts of a checkpoint by their path, verified, and its step; it only reads, beside a running writer too.

    Args:
      directory: the `checkpoints` folder of a run.
      targets: `{"params": tree}`, or other paths in the state: all that lies below each, as `jax.ShapeDtypeStruct`,
        with the shardings that it shall have.
      step: by default the newest that is undamaged.
      on_event: gets `checkpoint_damaged` for every step that was passed over.

    Raises:
      UserError: no such checkpoint, a damaged one was asked for, none is undamaged, or it is of another model.
    """
    place = absolute(directory)
    wanted = {f"{part}/{path}": leaf for part, tree in targets.items() for path, leaf in trees.flatten(tree).items()}
    for candidate in candidates(place, step):
        try:
            leaves = restore_verified(place, candidate, wanted, tuple(f"{part}/" for part in targets))
        except DamagedError as damage:
            on_event("checkpoint_damaged", {"step": candidate, "reason": str(damage)})
            if step is not None:
                raise damaged_step(place, step, damage) from damage
        else:
            values = iter(leaves.values())
            return {part: rebuild(tree, _next(values, tree)) for part, tree in targets.items()}, candidate
    raise UserError(f"every checkpoint in {place} is damaged: start again, or copy an undamaged one there")


def _next(values: Iterator[Any], tree: Any) -> list[Any]:
    return list(itertools.islice(values, len(jax.tree.leaves(tree))))


def absolute(directory: epath.PathLike) -> epath.Path:
    """The directory as Orbax wants it: a bucket as it is, anything else absolute."""
    path = epath.Path(directory)
    return path if "://" in str(directory) else epath.Path(path.expanduser().absolute())


def candidates(directory: epath.Path, step: int | None) -> list[int]:
    """The steps to try, newest first, or the one that is asked for.

    Raises:
      UserError: there is no checkpoint, or not this one.
    """
    steps = from_first_process(committed_steps(directory))
    if not steps:
        raise UserError(f"there is no checkpoint in {directory}")
    if step is None:
        return steps[::-1]
    if step in steps:
        return [step]
    raise UserError(f"there is no checkpoint of step {step} in {directory}: it has {', '.join(map(str, steps))}")


def damaged_step(directory: epath.Path, step: int, damage: DamagedError) -> UserError:
    """The sentence for a damaged checkpoint that was asked for by its step."""
    others = [str(other) for other in committed_steps(directory) if other != step]
    instead = f"choose another step ({', '.join(others)})" if others else "there is no other"
    return UserError(f"the checkpoint of step {step} in {directory} is damaged ({damage}): {instead}")


def rebuild(target: Any, leaves: Any) -> Any:
    """The tree of `target` with other leaves, given in its order."""
    return jax.tree.unflatten(jax.tree.structure(target), list(leaves))


def restore_verified(
    directory: epath.Path, step: int, targets: Mapping[str, Any], prefix: str | tuple[str, ...] = ""
) -> dict[str, jax.Array]:
    """The leaves of a committed step with the shapes, dtypes and shardings of `targets`, in their order.

    Raises:
      UserError: the checkpoint is of another model.
      DamagedError: any file or value is not what was saved, on any process.
    """
    path = step_directory(directory, step)
    _agreed(lambda: check_file_sizes(path))
    record = _agreed(lambda: read_record(directory, step))
    check_same_model(record, targets, prefix)
    leaves = _agreed(lambda: _load(path, targets))
    _verify(record, leaves)
    return leaves


def _agreed(read: Callable[[], Any]) -> Any:
    """What `read` returns, once every process has read without damage."""
    value, problem = None, None
    try:
        value = read()
    except DamagedError as damage:
        problem = damage
    reason = first_reason(str(problem) if problem else None)
    if reason is not None:
        raise DamagedError(reason) from problem
    return value


def _load(path: epath.Path, targets: Mapping[str, Any]) -> dict[str, jax.Array]:
    # Every process loads by itself: were Orbax to wait for the others, one that finds damage would leave them waiting.
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.primary_host = jax.process_index()
    try:
        with context:
            wanted = trees.unflatten({name: _placed(leaf) for name, leaf in targets.items()})
            tree = ocp.load(path, wanted, checkpointable_name=STATE)
    except Exception as error:  # Orbax wraps what damaged files raise into bare exceptions
        if any(word in text for text in _messages(error) for word in _NOT_DAMAGE):
            raise
        raise DamagedError(_describe(path, error)) from error
    loaded = trees.flatten(tree)
    return {name: loaded[name] for name in targets}


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _verify(record: Record, leaves: Mapping[str, jax.Array]) -> None:
    found = digests(leaves)
    wrong = [path for path in leaves if found[path][0] != record.leaves[path].digest]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedError(f"{STATE}: the values of {wrong[0]}{more} are not those that were saved (digest differs)")
    if "step" in leaves and int(leaves["step"]) != record.step:
        raise DamagedError(f"{STATE} holds step {int(leaves['step'])}")


def _messages(error: BaseException | None) -> list[str]:
    """The messages of an error and of those that caused it, the first cause last."""
    messages = []
    while error is not None:
        messages.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return messages


def _describe(path: epath.Path, error: BaseException) -> str:
    """File and reason, from the innermost message that names a file of the checkpoint."""
    messages = [" ".join(text.split()) for text in _messages(error)][::-1]
    text = next((text for text in messages if str(path) in text), f"{STATE}: {messages[0]}")
    return text.split(" [", 1)[0].replace(f"{path}/", "").replace(str(path), path.name)[:300]
