"""One training under way: its rounds, its state, where it goes on from."""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import stopping
from ..cells.folder import TrainingFiles
from ..cells.identity import digest
from ..costs import Energy, PeakMemory, clocks
from ..data.measurements import Measurements, TrainingSet
from ..hashed import OF, Damaged
from ..passes import Meter
from ..progress import Progress
from ..seeding import generator_for, scoped_rng, seed_for
from .averages import Averages
from .batches import batch_index
from .checkpoint import (
    Store,
    check_weights,
    flatten_optimiser,
    read_tensors,
    restore_optimiser,
    write_tensors,
)
from .method import Method, Problem, Round, Session
from .ranks import Ranks
from .report import TrainingReport
from .snapshots import Snapshots
from .start import begin_from
from .tracking import Tracking
from .watch import Diverged, Watch

if TYPE_CHECKING:
    from .trainer import Trainer


class Run:
    """The state of one call of :meth:`Trainer.fit`."""

    def __init__(
        self,
        trainer: "Trainer",
        method: Method,
        problem: Problem,
        measurements: Measurements,
        seed: int,
        folder: Path | None,
        clean: Tensor | None,
        progress: Progress,
        identity: str = "",
    ) -> None:
        self.trainer, self.method, self.seed = trainer, method, seed
        self.ranks = Ranks.of(trainer.accelerator)
        # Whose checkpoint, results and snapshots are taken up; a release does not change it.
        named = [type(method).__qualname__, seed, measurements.hash, trainer.steps]
        self.identity = digest([identity, *named])
        files = None if folder is None else TrainingFiles(folder)
        self.path = None if files is None else files.checkpoint
        self.first_stage = None if files is None else files.first_stage
        method.setup(problem, trainer.device)
        self.networks = dict(method.networks())
        self.rounds = list(method.rounds(trainer.steps)) if self.networks else []
        planned = method.planned(self.rounds)
        if self.networks and planned != trainer.steps:
            raise ValueError(
                f"{method.name} plans {planned} steps of '{method.budgeted}'; the budget, equal "
                f"for all methods, is {trainer.steps}"
            )
        self.report = TrainingReport(steps=dict.fromkeys(self.networks, 0))
        kept = files.snapshots if files and self.ranks.is_first else None
        whole = {k: sum(r.steps * r.turns.count(k) for r in self.rounds) for k in self.networks}
        total = method.followed(whole)
        self.snapshots = Snapshots(kept, trainer.snapshots, total, self.identity)
        title = f"{method.name}, seed {seed}, {self.identity}"
        self.tracking = Tracking(trainer.tracker, trainer.accelerator, files, title)
        self.memory, self.energy = PeakMemory(), Energy()
        self.watch = Watch(trainer.device.type == "cuda", self.ranks)
        self.meter = Meter()
        self.meter.watch(self.networks)  # averages and other copies are counted with them
        self.averages = Averages(self.networks, trainer.ema)
        self.optimisers = self._new_optimisers()
        self.session = Session(
            measurements=measurements,
            clean=clean,
            averaged=self.averages.modules,
            device=trainer.device,
            store=Store(
                None if files is None else files.rounds, self.meter, self.identity, self.ranks
            ),
            progress=progress,
            seed=seed,
        )

    # -- state ---------------------------------------------------------------------------------

    def _new_optimisers(self) -> dict[str, torch.optim.Optimizer]:
        t = self.trainer
        return {
            name: torch.optim.AdamW(
                network.parameters(),
                lr=self.method.learning_rates.get(name, t.lr),
                betas=self.method.betas.get(name, (0.9, 0.999)),
                weight_decay=t.weight_decay,
                fused=True,
            )
            for name, network in self.networks.items()
        }

    def _save(self, number: int, step: int) -> None:
        if self.path is None or not self.ranks.is_first:
            return
        modules = self._modules(self.networks).items()
        tensors = {f"{k}.{n}": v for k, m in modules for n, v in m.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            tensors |= flatten_optimiser(name, optimiser)
        self._note_passes()
        meta = {
            OF: self.identity,
            "round": number,
            "step": step,
            "report": self.report.__dict__,
            "costs": self.session.costs,
            "log": self.session.log,
        }
        write_tensors(self.path, tensors, meta)

    def _modules(self, names: Iterable[str]) -> dict[str, nn.Module]:
        """Return what a checkpoint holds of networks, by the beginning of its tensors' names."""
        found: dict[str, nn.Module] = {f"network.{name}": self.networks[name] for name in names}
        return found | {f"average.{name}": self.averages.models[name] for name in names}

    def _load(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
        for key, module in self._modules(names).items():
            own = {k[len(key) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{key}.")}
            module.load_state_dict(own)
        for name in names:
            restore_optimiser(name, self.optimisers[name], tensors)

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> tuple[dict[str, nn.Module], TrainingReport]:
        """Run all rounds from the last checkpoint on."""
        number, step, saved = self._resume()
        if number == 0 and not saved:
            self._begin_from_start()
        if not self.networks:
            # Nothing to train; such a method still meets the measurements.
            self.method.begin_round(0, Round("observe", 0), self.session)
            self._note_memory()
        try:
            with self.tracking.running(self._steps_before(number) + step):
                self.tracking.begin(self.report)
                for n in range(number, len(self.rounds)):
                    self._round(n, step if n == number else 0, saved if n == number else {})
        except Diverged:
            self.report.status = "diverged"
        self.report.costs, self.report.log = self.session.costs, self.session.log
        self._note_passes()
        self.report.passes = self.ranks.total(self.report.passes)
        self.report.cpu_seconds = self.ranks.total({"": self.report.cpu_seconds})[""]
        self.meter.is_on = False  # hooks stay on copies that nobody here knows
        return self.averages.modules, self.report

    def finished(self) -> dict[str, nn.Module] | None:
        """Return the averaged networks where the last checkpoint is that of the end."""
        if self.networks:
            number, _, _ = self._resume()
            if number < len(self.rounds):
                return None
        else:
            self.method.begin_round(0, Round("observe", 0), self.session)
        self.meter.is_on = False
        return self.averages.modules

    def _resume(self) -> tuple[int, int, dict[str, Tensor]]:
        """Take up the state of the last checkpoint; return its round, its step, its tensors.

        Raises:
            Damaged: It is damaged, or another training's; the state is no beginning's any more.
        """
        if self.path is None or not self.path.exists():
            return self._begin_with_first_stage(), 0, {}
        saved, meta = read_tensors(self.path, self.identity)
        number, step = self._take_up(self.path, saved, meta, list(self.networks))
        return number, step, saved

    def _begin_with_first_stage(self) -> int:
        """Take up the finished training of the first stage, where it is; return the next round."""
        first, path = self.method.first_stage(), self.first_stage
        if first is None or path is None or not path.exists():
            return 0
        saved, meta = read_tensors(path)
        number, step = self._take_up(path, saved, meta, list(first.networks()))
        if (number, step) != (len(first.rounds(self.trainer.steps)), 0):
            raise Damaged(f"'{path}' holds a training that is not finished")
        return number

    def _take_up(
        self, path: Path, saved: Mapping[str, Tensor], meta: Mapping[str, Any], names: list[str]
    ) -> tuple[int, int]:
        """Take up the state of some networks and what was spent; return its round and its step."""
        check_weights(path, saved, self._modules(names), self.method.name)
        try:
            number, step = int(meta["round"]), int(meta["step"])
            self.report = TrainingReport(**meta["report"])
            self.report.steps = {**dict.fromkeys(self.networks, 0), **self.report.steps}
            self.session.costs, self.session.log = meta["costs"], meta["log"]
            self.meter.restore(self.report.passes, self.report.pass_flops, self.report.uncounted)
            self._load(saved, names)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Damaged(f"'{path}' is damaged: {error}") from error
        return number, step

    def _round(self, number: int, first: int, saved: Mapping[str, Tensor]) -> None:
        """Train one round, from step ``first`` of it."""
        plan = self.rounds[number]
        if number == 0 and not saved:
            self._save(number, 0)
        costs, log = dict(self.session.costs), dict(self.session.log)
        passes = self.meter.so_far()
        start = clocks()
        training_set = self.method.begin_round(number, plan, self.session)
        self.ranks.wait()
        if first == 0:
            self.report.add_time("E-step", start)
        self._note_energy(is_counted=first == 0)
        found = {"E-step": self.session.log, "spent": self.session.costs}
        self.tracking.log(found, self._steps_before(number) + first)
        self._begin(number, plan)
        if first > 0:
            # Resumed inside the round: the E-step's results came from the store and were counted
            # before; weights and counts are those of the checkpoint.
            self._load(saved, self.networks)
            self.session.costs, self.session.log = costs, log
            self.meter.passes = passes
        self._steps(number, plan, first, training_set)
        self.ranks.wait()
        if self.ranks.is_first:
            self.session.store.clear()

    def _begin(self, number: int, plan: Round) -> None:
        """Set up weights, averages and optimisers as the round asks for."""
        if number == 0 or plan.begin == "continue":
            return
        if plan.begin == "scratch":
            with scoped_rng(seed_for(self.seed, "weights", round=number)):
                self.method.build()
            self.networks = {
                k: n.to(self.trainer.device) for k, n in self.method.networks().items()
            }
            self.meter.watch(self.networks)
            self._begin_from_start()
        else:
            for name, network in self.networks.items():
                network.load_state_dict(self.averages.modules[name].state_dict())
        self.averages = Averages(self.networks, self.trainer.ema)
        self.session.averaged = self.averages.modules
        self.optimisers = self._new_optimisers()

    def _begin_from_start(self) -> None:
        """Give the networks, and their averages, the weights that the training begins with."""
        if self.trainer.start is None or not self.networks:
            return
        begin_from(self.trainer.start, self.method, self.networks)
        for name, network in self.networks.items():
            self.averages.modules[name].load_state_dict(network.state_dict())

    def _steps(self, number: int, plan: Round, first: int, training_set: TrainingSet) -> None:
        t = self.trainer
        told, saved_at = clocks(), time.perf_counter()
        phase = f"train · {plan.name}"
        with self.session.progress.task(phase, plan.steps) as task:
            task.done = first
            for step in range(first, plan.steps):
                for turn_number, turn in enumerate(plan.turns):
                    keys = {"round": number, "step": step, "turn": turn_number}
                    self._turn(turn, training_set, len(plan.turns), self._rate(number, step), keys)
                self.snapshots.keep(self.method.followed(self.report.steps), self.averages.modules)
                is_logged = step % t.log_every == 0 or step + 1 == plan.steps
                if is_logged or not self.watch.is_late:  # to read the clock waits for a GPU
                    self.watch.settle()
                    told = self.report.add_time("training", told)
                if is_logged:
                    self._log(number, step)
                # Those that train together all know of it in the same step.
                asked = self.watch.asked if self.ranks.count > 1 else stopping.asked()
                is_due = time.perf_counter() - saved_at > t.checkpoint_seconds
                if (is_due and step + 1 < plan.steps) or asked:
                    self.watch.settle()
                    told = self.report.add_time("training", told)
                    self._note_energy()
                    self._save(number, step + 1)
                    told, saved_at = clocks(), time.perf_counter()
                if asked:
                    stopping.ask(asked)
                # Ends here where the process was asked to; a signal since is heard a step later.
                with stopping.later(not asked):
                    task.advance(note=f"loss {self.watch.last.get('loss', math.nan):.3f}")
        self._note_memory()
        self._note_energy()
        # Before the store is cleared: from here on an interrupted run begins with the next round.
        self._save(number + 1, 0)

    def _note_memory(self) -> None:
        """Keep the highest mark; an interrupted run has had one before."""
        for kind, now in self.memory.read().items():
            before = self.report.memory_mb.get(kind)
            self.report.memory_mb[kind] = max(now, before) if now and before else now or before

    def _note_energy(self, is_counted: bool = True) -> None:
        for kind, joules in self.energy.spent().items():
            before = self.report.energy_j.get(kind)
            if joules is not None and is_counted:
                joules += before or 0.0
            self.report.energy_j[kind] = joules if is_counted and joules is not None else before

    def _note_passes(self) -> None:
        self.meter.price()
        self.report.passes, self.report.pass_flops = self.meter.so_far(), self.meter.flops
        self.report.uncounted = self.meter.uncounted

    def _turn(
        self, turn: str, training_set: TrainingSet, turns: int, rate: float, keys: dict[str, int]
    ) -> None:
        """Take an optimiser step on the batches of all processes."""
        t, network, optimiser = self.trainer, self.networks[turn], self.optimisers[turn]
        if not network.training:
            network.train()
        optimiser.zero_grad(set_to_none=True)
        losses = [
            self._backward(turn, training_set, turns, part, keys) for part in range(t.accumulate)
        ]
        if self.report.steps[turn] == 0:
            self.ranks.agree(network)  # layers that are set up by their first batch
        parameters = [p for p in network.parameters() if p.grad is not None]
        self.ranks.average(p.grad for p in parameters if p.grad is not None)
        diverges = self.watch.see(losses, nn.utils.clip_grad_norm_(parameters, t.clip))
        if self.watch.is_late:
            # Such a step leaves the weights as they are, which a GPU can see to by itself.
            optimiser.found_inf = diverges  # type: ignore[attr-defined]
        for group in optimiser.param_groups:
            group["lr"] = rate * self.method.learning_rates.get(turn, t.lr)
        optimiser.step()
        self.averages.update(turn, network)
        self.report.steps[turn] += 1

    def _backward(
        self, turn: str, training_set: TrainingSet, turns: int, part: int, keys: dict[str, int]
    ) -> dict[str, Tensor]:
        """Add the gradients of one batch; return its losses.

        Two batches of one process are those of two processes: each has its number among all.
        """
        t = self.trainer
        rank, ranks = self.ranks.index * t.accumulate + part, self.ranks.count * t.accumulate
        k = keys["step"] * turns + keys["turn"]
        index = batch_index(len(training_set), t.batch, k, self.seed, keys["round"], rank, ranks)
        batch = training_set.batch(index).to(t.device)
        torch.manual_seed(seed_for(self.seed, "dropout", rank=rank, **keys))
        generator = generator_for(self.seed, "loss", rank=rank, **keys)
        loss = self.method.loss(batch, generator, turn)
        t.accelerator.backward(loss.total if t.accumulate == 1 else loss.total / t.accumulate)
        if self.method.is_budgeted(turn):
            self.report.images += len(batch) * self.ranks.count
        named = {"loss": loss.total, **loss.parts}
        device = loss.total.device
        return {k: torch.as_tensor(v).detach().to(device, torch.float64) for k, v in named.items()}

    def _rate(self, number: int, step: int) -> float:
        """Linear warm-up, then cosine decay, over the rounds that share an optimiser."""
        starts = [i for i, r in enumerate(self.rounds) if i == 0 or r.begin != "continue"]
        begin = max(i for i in starts if i <= number)
        end = min((i for i in starts if i > number), default=len(self.rounds))
        total = sum(r.steps for r in self.rounds[begin:end])
        k = sum(r.steps for r in self.rounds[begin:number]) + step
        warm = min(1.0, (k + 1) / max(1, min(self.trainer.warmup, total // 4)))
        low = self.trainer.final_lr
        return warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * k / total)))

    def _steps_before(self, number: int) -> int:
        return sum(r.steps for r in self.rounds[:number])

    def _log(self, number: int, step: int) -> None:
        """Add an entry to the history."""
        entry: dict[str, float | str] = {"round": self.rounds[number].name, "step": step}
        self.report.history.append({**entry, **self.watch.last})
        self._note_energy()
        turns = self.rounds[number].turns
        turn = self.method.budgeted if self.method.budgeted in turns else turns[-1]
        rate = self.method.learning_rates.get(turn, self.trainer.lr)
        rate *= self._rate(number, step)
        k = self._steps_before(number) + step
        self.tracking.log_steps(self.watch.last, rate, number, self.report, k)
