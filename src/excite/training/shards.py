"""The same weights on any layout of a CPU job: any number of threads, decoding workers and processes, bit for bit.

Sums of floating-point numbers depend on their order, and PyTorch chooses that order by the number of threads and the
size of what it is given. With ``train.deterministic=true``, a step on the CPU is therefore computed in a number S of
shards that only depends on the recipe. Shard i has the images i, i + S, ... of the batch, its own augmentation and
dropout, and is computed by one thread. What shards tell each other (the statistics of batch norms, gradients) is added
in an order that only depends on S. So a job of any layout computes exactly what S processes would, with batch norms
over the whole batch.

A process of a job of W has the shards r, r + W, ... of its rank r. Sums over shards are taken by halves: shard i gets
i + S/2 added, then i + S/4 and so on. As W is a power of 2, too, the first of these additions are each within a
process, and the rest between processes.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from excite.errors import ExciteError
from excite.ops.sync_norm import computing_with
from excite.recipe import Recipe

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: Shards of a step unless ``train.shards`` says otherwise or the batch size allows fewer. More can use more cores, but
#: Python runs one thread at a time between operators (docs/performance.md has the measurements).
USUAL = 4


def count_shards(recipe: Recipe) -> int:
    """Number of shards of a step, a power of 2; it only depends on the recipe."""
    config = recipe.train
    if config.shards is not None:
        return config.shards
    count = USUAL
    while config.batch_size % (count * config.grad_accumulation):
        count //= 2
    return count


def obstacle(recipe: Recipe, model: nn.Module, world: int, image: tuple[int, int, int]) -> str | None:
    """Why a recipe cannot be trained in shards, as the end of a sentence; None if it can.

    Args:
        recipe: with ``train.deterministic``.
        model: the network, on the CPU, as created.
        world: number of processes.
        image: (C, H, W) of the training images.
    """
    config, count = recipe.train, count_shards(recipe)
    if config.compile != "off":
        return f"train.compile={config.compile} chooses the order of sums"
    if count % world:
        layouts = ", ".join(str(1 << k) for k in range(count.bit_length()))
        return f"there are {world} processes, not {layouts} (train.shards={count})"
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    odd = next((m for m in norms if type(m) not in kinds), None)
    if odd is not None and count > 1:
        return f"norms of type {type(odd).__name__} cannot be computed over several parts of a batch"
    if norms and config.norm_precision == "same" and config.precision != "fp32":
        return "train.norm_precision=same cannot be computed over several parts of a batch"
    if config.grad_checkpointing and draws(model, image):
        return "train.grad_checkpointing computes dropout twice"
    return None


def draws(model: nn.Module, image: tuple[int, int, int]) -> bool:
    """Whether the network draws random numbers in training (dropout, stochastic depth). Neither it nor the random state
    changes."""
    probe = copy.deepcopy(model).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        probe(torch.zeros(2, *image))
        return not torch.equal(before, torch.get_rng_state())


class Shards:
    """The shards of one process: threads, and for each a copy of the network that shares its parameters.

    Args:
        model: the network, its norms converted by ``convert_sync_batchnorm``; shard ``rank`` uses it itself.
        count: S, over all processes.
        accelerator: the processes.
        random: whether the network draws random numbers (:func:`draws`).
    """

    def __init__(self, model: nn.Module, count: int, accelerator: Accelerator, random: bool) -> None:
        self.count, self.random = count, random
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.here = count // self.world
        self._threads = min(torch.get_num_threads(), self.here)
        self._turns = threading.Semaphore(self._threads)
        self._meeting = _Meeting(self.here, self.world, self._turns)
        self._models = [model, *(_sharing_parameters(model) for _ in range(self.here - 1))]
        self._parameters = [list(m.parameters()) for m in self._models]
        self._buffers = [list(m.buffers()) for m in self._models]
        self._modules = list(zip(*(m.modules() for m in self._models), strict=True))
        self._pool: ThreadPoolExecutor | None = None
        if self.world > 1:  # as DistributedDataParallel begins
            for tensor in (*self._parameters[0], *self._buffers[0]):
                distributed.broadcast(tensor.data, 0)

    def number(self, index: int) -> int:
        """Which of all shards this process's shard ``index`` is."""
        return self.rank + self.world * index

    def cut(self, tensor: Tensor) -> list[Tensor]:
        """The parts of this process's share of a batch, (B, ...) each. Copies, because strides decide how PyTorch
        computes, and views would have others in another layout."""
        return [tensor[index :: self.here].clone() for index in range(self.here)]

    def backward(self, work: Callable[[nn.Module, int], Tensor], states: Sequence[Tensor]) -> Tensor:
        """Have each shard do its backward pass, and add what they give.

        Args:
            work: (the shard's copy of the network, index of the shard here) -> (L,) float32 numbers; it leaves
                gradients in the parameters of the copy.
            states: the state of the random generator that each shard begins with.

        Returns:
            (L,) the sums of the numbers over all shards. The sums of the gradients are in those of the network.

        Raises:
            ExciteError: the network draws random numbers in a way that a shard cannot have for itself.
        """
        self._follow()
        before = torch.get_rng_state()

        def job(index: int) -> Tensor:
            generator = torch.Generator()
            generator.set_state(states[index])
            drawing = _DrawingFrom(generator) if self.random else nullcontext()
            with computing_with(_Seat(self._meeting, index)), drawing:
                answer = work(self._models[index], index)
            self._meeting.gather(index, torch.empty(0))  # if others still wait for this one, they do so here
            return answer

        numbers = self._together(job)
        if not torch.equal(before, torch.get_rng_state()):
            raise ExciteError(
                "train.deterministic: the network drew random numbers that depend on the number of threads; use "
                "train.deterministic=false, or a network without dropout of that kind"
            )
        return self._add_up(numbers)

    def map(self, work: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[tuple[Item, Answer]]:
        """(item, ``work(item)``) in order, without gradients; each is computed by one thread, several at a time."""

        def job(item: Item) -> Answer:
            with torch.no_grad():
                return work(item)

        waiting: deque[tuple[Item, Future[Answer]]] = deque()
        for item in items:
            waiting.append((item, self._workers().submit(job, item)))
            if len(waiting) > self._threads:
                done, answer = waiting.popleft()
                yield done, answer.result()
        for done, answer in waiting:
            yield done, answer.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:  # in threads that begin now, PyTorch uses the present number of threads: one
            self._pool = ThreadPoolExecutor(self.here, "shard", initializer=torch.set_num_threads, initargs=(1,))
        return self._pool

    def _together(self, job: Callable[[int], Tensor]) -> list[Tensor]:
        """``job`` of every shard, at most ``_threads`` of them computing at a time. Raises the first error of any."""
        errors: list[BaseException] = []

        def guarded(index: int) -> Tensor:
            with self._turns:
                try:
                    return job(index)
                except BaseException as error:
                    if not isinstance(error, threading.BrokenBarrierError):
                        errors.append(error)
                    self._meeting.barrier.abort()  # the others would wait for this one
                    raise

        try:
            futures = [self._workers().submit(guarded, index) for index in range(self.here)]
        except RuntimeError as error:  # shards wait for each other, so fewer threads cannot do the work
            self._meeting.barrier.abort()
            self.close()
            raise ExciteError(
                f"the system refused to start {self.here} threads, one for each shard ({error}); use fewer "
                "(train.shards=1) or train.deterministic=false"
            ) from error
        try:
            return [future.result() for future in futures]
        except threading.BrokenBarrierError:
            for future in futures:
                future.exception()
            raise errors[0] from None
        finally:
            if self._meeting.barrier.broken:
                for future in futures:
                    future.exception()
                self._meeting.barrier.reset()

    def _follow(self) -> None:
        """Give the copies the buffers and modes of the network, which a checkpoint, a skipped step or an epoch may have
        changed."""
        first, *others = self._buffers
        for buffers in others:
            if buffers:
                torch._foreach_copy_(buffers, first)
        for module, *copies in self._modules:
            for other in copies:
                other.training = module.training
        for parameters in self._parameters[1:]:
            for mine, parameter in zip(parameters, self._parameters[0], strict=True):
                mine.requires_grad_(parameter.requires_grad)

    def _add_up(self, numbers: list[Tensor]) -> Tensor:
        """Add gradients and numbers over all shards; see the top of this file for the order."""
        count = len(numbers[0])
        summed = [p for p in self._parameters[0] if p.requires_grad]
        grads = [[p.grad for p in parameters if p.requires_grad] for parameters in self._parameters]
        for parameters in self._parameters[1:]:
            for parameter in parameters:
                parameter.grad = None
        apart = self.here
        while apart > 1:
            apart //= 2
            for index in range(apart):
                numbers[index] = numbers[index] + numbers[index + apart]
                grads[index] = _added(grads[index], grads[index + apart])
        if self.world > 1:
            # A parameter that no shard used must have no gradient in any layout: the optimiser leaves it alone then.
            used = numbers[0].new_tensor([grad is not None for grad in grads[0]])
            flat = [
                p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(summed, grads[0], strict=True)
            ]
            total = _over_processes(torch.cat([numbers[0], used, *flat]), self.world)
            numbers[0], used, *flat = total.split([count, len(used), *(p.numel() for p in summed)])
            grads[0] = [
                _like(p, values) if any_used else None
                for p, values, any_used in zip(summed, flat, used.tolist(), strict=True)
            ]
        for parameter, grad in zip(summed, grads[0], strict=True):
            parameter.grad = grad
        return numbers[0]


def _sharing_parameters(model: nn.Module) -> nn.Module:
    """A copy with its own buffers and gradients, whose parameters are the same memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _added(mine: list[Tensor | None], theirs: list[Tensor | None]) -> list[Tensor | None]:
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
    if pairs:
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])
    return [b if a is None else a for a, b in zip(mine, theirs, strict=True)]


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """A gradient with the strides of its parameter."""
    return torch.empty_like(parameter).copy_(values.view(parameter.shape))


def _over_processes(mine: Tensor, world: int) -> Tensor:
    """(L,) -> (L,): the sum over all processes by halves. Each process adds up a W-th of the numbers, which takes no
    more traffic than an all-reduce."""
    share = -(-len(mine) // world)
    padded = torch.cat([mine, mine.new_zeros(share * world - len(mine))])
    parts = torch.empty_like(padded)
    distributed.all_to_all_single(parts, padded)
    rows = list(parts.view(world, share))
    apart = world
    while apart > 1:
        apart //= 2
        rows = [rows[index] + rows[index + apart] for index in range(apart)]
    distributed.all_gather(list(padded.view(world, share)), rows[0].contiguous())
    return padded[: len(mine)]


class _Meeting:
    """Where the shards of a process wait for each other, and the processes for each other."""

    def __init__(self, here: int, world: int, turns: threading.Semaphore) -> None:
        self._world, self._turns = world, turns
        self._mine: list[Tensor] = [torch.empty(0)] * here
        self._all = torch.empty(0)
        self.barrier = threading.Barrier(here, self._exchange)  # the last to come exchanges for all

    def gather(self, index: int, mine: Tensor) -> Tensor:
        """(L,) of each shard -> (S, L), in the order of their numbers. Another shard may compute meanwhile."""
        self._mine[index] = mine
        self._turns.release()
        try:
            self.barrier.wait()
        finally:
            self._turns.acquire()
        return self._all  # not replaced before all have come again

    def _exchange(self) -> None:
        if len({len(mine) for mine in self._mine}) > 1:
            raise ExciteError(
                "train.deterministic: the parts of a batch did not all run the same norms of the network, so they "
                "cannot be computed together; use train.deterministic=false"
            )
        stacked = torch.stack(self._mine)
        if self._world == 1 or not stacked.numel():
            self._all = stacked
            return
        gathered = stacked.new_empty(self._world, *stacked.shape)
        distributed.all_gather(list(gathered.unbind()), stacked)
        self._all = gathered.transpose(0, 1).reshape(-1, stacked.shape[1])


class _Seat:
    """The parts of a batch, for the norms of one shard (``sync_norm.Parts``)."""

    def __init__(self, meeting: _Meeting, index: int) -> None:
        self._meeting, self._index = meeting, index

    def gather(self, mine: Tensor) -> Tensor:
        return self._meeting.gather(self._index, mine)

    def add(self, mine: Tensor) -> Tensor:
        return self.gather(mine.reshape(-1)).sum(0).view_as(mine)


class _DrawingFrom(TorchDispatchMode):
    """Context in which this thread draws its random numbers from a generator of its own: PyTorch's global one gives
    them to whichever thread comes first."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None and (drawing := _with_generator(func)) is not None:
            return drawing(*args, **kwargs | {"generator": self._generator})
        return func(*args, **kwargs)


_found: dict[Any, Any] = {}


def _with_generator(func: Any) -> Any:
    """The form of an operator that takes a generator; None if there is none."""
    if func not in _found:
        name, packet = func._overloadname, func._overloadpacket
        other = "generator" if name == "default" else f"{name}_generator"
        takes = any(argument.name == "generator" for argument in func._schema.arguments)
        _found[func] = func if takes else getattr(packet, other) if other in packet.overloads() else None
    return _found[func]
