"""`batch(step)`: this host's rows of the global batch, computed and never remembered."""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence

import grain
import numpy as np

from research.data.draws import Draws, permute
from research.data.shards import ShardReader
from research.data.tokenizer import Tokenizer
from research.data.windows import Ids, Plan, Spans, Windows, make_plan, partners_of, places_of
from research.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]
Corrupt = Callable[[Windows, Draws], Mapping[str, np.ndarray]]


class Loader:
    """Training batches as a pure function of (prepared data, seed, step).

    Row `r` of step `i` is window number `n = i * batch_size + r` of the run: of epoch `n // num_windows`, in which the
    windows are permuted by (seed, epoch). Micro-batch `m` of an update holds the rows `m * batch_size / accumulation`
    and following. Which host computes a row, and in how many micro-batches, changes nothing in it.
    """

    def __init__(
        self,
        reader: ShardReader,
        vocabulary: Vocabulary,
        *,
        seed: int,
        batch_size: int,
        accumulation: int,
        raw_length: int,
        packing: str,
        num_tokens: int | None,
        corrupt: Corrupt,
        num_steps: int = 1,
        partners: bool = False,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        """Plans the pool.

        Args:
          reader: the training split.
          vocabulary: its tokenizer's ids.
          seed: the run's seed.
          batch_size: sequences of the global batch.
          accumulation: micro-batches an update; divides `batch_size`.
          raw_length: tokens of a window before corruption.
          packing: `stream` or `fit`.
          num_tokens: size of the pool; none: all.
          corrupt: makes arrays [batch, ...] of windows [batch, ...].
          num_steps: length of the run, for what changes in its course.
          partners: give each window another one beside it.
          rows: which rows of each micro-batch this host computes; none: all.

        Raises:
          UserError: `num_tokens` is larger than the corpus, or too small for one window.
        """
        assert batch_size % accumulation == 0, (batch_size, accumulation)
        self._reader, self._vocabulary, self._corrupt = reader, vocabulary, corrupt
        self._seed, self._batch_size = seed, batch_size
        self._num_steps, self._partners = num_steps, partners
        micro = batch_size // accumulation
        local = np.arange(micro) if rows is None else np.asarray(rows, dtype=np.int64)
        assert local.size and local.min() >= 0 and local.max() < micro, (rows, micro)
        self._rows = np.arange(accumulation, dtype=np.int64)[:, None] * micro + local
        self._plan = make_plan(reader, packing, raw_length, num_tokens)

    @property
    def num_windows(self) -> int:
        """Windows of the pool: an epoch."""
        return self._plan.num_windows

    def batch(self, step: int) -> Batch:
        """The arrays that `corrupt` makes for a step, each [accumulation, rows, ...]."""
        arrays = self.rows_of([step])
        return {name: array.reshape(*self._rows.shape, *array.shape[1:]) for name, array in arrays.items()}

    def rows_of(self, steps: Sequence[int]) -> Batch:
        """The rows of several steps, one step behind the other, each array [steps * accumulation * rows, ...]."""
        taken = np.asarray(steps, dtype=np.int64)[:, None]
        numbers = (taken * self._batch_size + self._rows.reshape(-1)).reshape(-1)
        epochs, indices = np.divmod(numbers, self.num_windows)
        ids = np.empty_like(indices)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            ids[now] = permute(indices[now], self.num_windows, (self._seed, int(epoch)))
        progress = np.repeat(np.minimum(taken[:, 0] / max(1, self._num_steps - 1), 1.0), self._rows.size)
        draws = Draws(self._seed, epochs, ids, progress)
        windows = self._plan.windows(self._reader, self._vocabulary, ids, epochs)
        if self._partners:
            windows = _with_partners(self._plan, self._reader, self._vocabulary, self.num_windows, windows, draws)
        return dict(self._corrupt(windows, draws))

    def prefetch(self, start_step: int, stop_step: int, buffer: int) -> Generator[tuple[int, Batch]]:
        """The batches of steps, made ahead; see `prefetched`."""
        return prefetched(self.batch, start_step, stop_step, buffer)

    def windows_seen(self, num_steps: int) -> Ids:
        """Ids of the distinct windows that the first `num_steps` updates have used, sorted."""
        seen = min(num_steps * self._batch_size, self.num_windows)
        return np.sort(permute(np.arange(seen), self.num_windows, (self._seed, 0)))

    def tokens_of(self, window_ids: Ids) -> Spans:
        """Where the windows lie in the training split's token stream: starts and lengths of spans."""
        return self._plan.spans(window_ids)


def prefetched(
    batch: Callable[[int], Batch], start_step: int, stop_step: int, buffer: int
) -> Generator[tuple[int, Batch]]:
    """`(step, batch(step))` for the steps from start to stop, up to `buffer` of them made ahead by Grain's threads.

    An error in `batch` is raised where the element is asked for. Closing the iterator ends the threads.
    """
    if buffer == 0 or stop_step <= start_step:
        for step in range(start_step, stop_step):
            yield step, batch(step)
        return
    elements = grain.MapDataset.range(start_step, stop_step).map(lambda step: (int(step), batch(int(step))))
    options = grain.ReadOptions(num_threads=min(buffer, 2), prefetch_buffer_size=buffer)
    iterator = iter(elements.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def stacked(loaders: Sequence[Loader]) -> Callable[[int], Batch]:
    """`batch(step)` of several loaders, each array `[loaders, accumulation, rows, ...]`."""

    def batch(step: int) -> Batch:
        parts = [loader.batch(step) for loader in loaders]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    return batch


class Heldout:
    """The held-out windows in their order, in batches of one size.

    Corruption is keyed by `seed`, epoch 0 and the window, so that every evaluation of every run asks the same.

    Attributes:
      num_windows: windows used.
      num_tokens: their tokens, `eos` included.
      num_bytes: UTF-8 bytes of text that these tokens stand for (`eos` stands for none).
      num_batches: batches, the last one filled up with rows of weight zero.
    """

    def __init__(
        self,
        reader: ShardReader,
        tokenizer: Tokenizer,
        *,
        seed: int,
        batch_size: int,
        raw_length: int,
        packing: str,
        corrupt: Corrupt,
        partners: bool = False,
        max_windows: int | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        """Plans the windows; arguments as those of `Loader`, `max_windows` keeps the first of them alone."""
        self._reader, self._vocabulary, self._corrupt, self._seed = reader, tokenizer.vocabulary, corrupt, seed
        self._batch_size, self._partners = batch_size, partners
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows, dtype=np.int64)
        self._plan = make_plan(reader, packing, raw_length, keep_tail=True)
        self.num_windows = min(self._plan.num_windows, max_windows or self._plan.num_windows)
        self.num_batches = -(-self.num_windows // batch_size)
        self.num_tokens, num_bytes = 0, 0.0
        for first in range(0, self.num_windows, 4096):
            spans = self.tokens_of(np.arange(first, min(first + 4096, self.num_windows)))
            places = places_of(*spans)
            self.num_tokens += len(places)
            exact = tokenizer.exact
            num_bytes += tokenizer.byte_lengths[reader.at(places)].sum() if exact else reader.bytes_at(places)
        self.num_bytes = round(num_bytes)

    def batch(self, index: int) -> Batch:
        """The arrays that `corrupt` makes for a batch, each [rows, ...]; rows behind the last window are all zero."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"held-out batch {index} of {self.num_batches}")
        ids = index * self._batch_size + self._rows
        real = ids < self.num_windows
        # A host whose rows are all padding still needs the arrays' names and shapes: it makes them of window 0.
        known = ids[real] if real.any() else np.zeros(1, dtype=np.int64)
        epochs = np.zeros_like(known)
        draws = Draws(self._seed, epochs, known)
        windows = self._plan.windows(self._reader, self._vocabulary, known, epochs)
        if self._partners:
            windows = _with_partners(self._plan, self._reader, self._vocabulary, self.num_windows, windows, draws)
        batch = {}
        for name, array in self._corrupt(windows, draws).items():
            batch[name] = np.zeros((len(ids), *array.shape[1:]), dtype=array.dtype)
            if real.any():
                batch[name][real] = array
        return batch

    def tokens_of(self, window_ids: Ids) -> Spans:
        """Where the windows lie in the held-out split's token stream: starts and lengths of spans."""
        return self._plan.spans(window_ids)


def _with_partners(
    plan: Plan, reader: ShardReader, vocabulary: Vocabulary, num_windows: int, windows: Windows, draws: Draws
) -> Windows:
    """The windows, each with another beside it."""
    ids = partners_of(plan, reader, num_windows, windows.ids, draws)
    return dataclasses.replace(windows, partners=plan.windows(reader, vocabulary, ids, windows.epochs))
