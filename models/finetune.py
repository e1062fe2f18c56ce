"""Trains encoder and head: the loop, its evaluations, its checkpoints.

The state after k steps is a function of seed, data, profile and k alone: batches follow from seed and
epoch, and each step seeds dropout from seed, step and rank. So a checkpoint needs no random state, and a
run that was killed and resumed ends with the same weights as one that was not. Several processes share
each global batch; with dropout off, they compute what one process computes, up to rounding.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from leitstand.errors import PermanentBackendError
from models.batching import epoch_batches, passes
from models.checkpoints import Checkpoints
from models.forward import logits
from models.frozen import initialise_head
from models.optimization import Average, autocast_dtype, class_weights, freeze_embeddings, parameter_groups, rate_factor
from models.task import Fitted, Task

__all__ = ["finetune"]

LOG_EVERY = 10  # steps


def finetune(task: Task) -> Fitted:
    """Trains ``task.model`` in place, from the newest checkpoint if there is one.

    With early stopping the weights of the best evaluation stay, otherwise those of the last step; with
    an EMA, evaluations and result are of the averaged weights.

    Raises:
        PermanentBackendError: The loss is not a number any more, or the disk is full.
    """
    loop = _Loop(task)
    resumed = loop.restore()
    if not resumed and task.profile.head_init == "frozen":
        initialise_head(task)
    loop.run()
    return Fitted(loop.result(), loop.step, loop.seconds(), resumed, loop.stopped)


class _Loop:
    """State that changes from step to step."""

    def __init__(self, task: Task) -> None:
        self.task, self.step, self.stopped = task, 0, False
        profile, workers = task.profile, task.workers
        if profile.freeze_embeddings:
            freeze_embeddings(task.model)
        task.model.to(workers.device).train()
        self._trained = {name: value for name, value in task.model.named_parameters() if value.requires_grad}
        groups = parameter_groups(task.model, profile)
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        self._wrapped = workers.wrap(task.model)
        self._dtype = autocast_dtype(profile.precision, workers.device)
        counts = class_weights(task.train.labels, task.model.head.out_features, profile.class_weights)
        self._weights = counts.to(workers.device)
        self._per_epoch = math.ceil(len(task.train.texts) / profile.batch_size)
        self._total = self._per_epoch * profile.epochs
        self._average: Average | None = None
        self._best: dict[str, Tensor] = {}
        self._best_loss, self._without_gain = math.inf, 0
        self._checkpoints = Checkpoints(task.folder / "checkpoints")
        self._before, self._started = 0.0, time.monotonic()
        self._seen, self._seen_at, self._loss, self._right = 0, self._started, 0.0, 0

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def run(self) -> None:
        """Steps until the end, evaluating after each epoch."""
        profile = self.task.profile
        if profile.ema_decay and self._average is None:
            self._average = Average(self.task.model, profile.ema_decay)
        batches: list[np.ndarray] = []
        planned = -1
        while self.step < self._total and not self.stopped:
            epoch, position = divmod(self.step, self._per_epoch)
            if epoch != planned:
                lengths = self.task.train.texts.lengths
                batches = epoch_batches(lengths, profile.batch_size, seed=self.task.seed, epoch=epoch)
                planned = epoch
            self._take_step(batches[position])
            ended = self.step % self._per_epoch == 0
            if ended:
                self._evaluate()
            if ended or self.step % profile.checkpoint_every_steps == 0:
                self._save()

    def result(self) -> Tensor:
        """Puts the chosen weights into the model and returns its validation logits."""
        if self._best:
            with torch.no_grad():
                for name, value in self._trained.items():
                    value.copy_(self._best[name])
        elif self._average is not None:
            self._average.swap()
        return logits(self.task.model, self.task.validation.texts, self.task.workers)

    def _take_step(self, rows: np.ndarray) -> None:
        factor = rate_factor(
            self.step, self._total, round(self.task.profile.warmup_fraction * self._total), self.task.profile.schedule
        )
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.zero_grad()
        loss, right = self._backward(rows)
        norm = torch.nn.utils.clip_grad_norm_(list(self._trained.values()), self.task.profile.max_grad_norm)
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            raise PermanentBackendError(
                f"Training diverged: loss {loss}, gradient norm {float(norm)} in step {self.step + 1} of {self._total}",
                hint=f"lower learning_rate (now {self.task.profile.learning_rate:g}), raise warmup_fraction, "
                "or write `precision: fp32` in the training profile",
            )
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self.step)
        self.step += 1
        self._log(len(rows), loss, right, float(norm), factor)

    def _backward(self, rows: np.ndarray) -> tuple[float, int]:
        """Adds up the gradients of the mean loss over `rows`, all processes together; returns loss and hits."""
        task, workers = self.task, self.task.workers
        state = np.random.SeedSequence([task.seed, self.step, workers.rank]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(state))
        scale = float(self._row_weights(rows).sum())
        mine = rows[workers.rank :: workers.size]
        # A process without rows still takes part in the exchange of gradients, with a loss of weight 0.
        weight = 1.0 if len(mine) else 0.0
        parts = passes(mine if len(mine) else rows[:1], task.train.texts.lengths, task.profile.token_budget)
        sums = torch.zeros(2, device=workers.device)
        for index, part in enumerate(parts):
            with self._quiet(last=index == len(parts) - 1):
                loss, right = self._forward(part)
                (loss * (weight * workers.size / scale)).backward()
            sums += weight * torch.stack([loss.detach() / scale, right])
        loss, right = workers.total(sums).tolist()
        return loss, int(right)

    def _forward(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        device = self.task.workers.device
        ids, mask = (tensor.to(device) for tensor in self.task.train.texts.pad(rows))
        labels = self.task.train.labels[rows].to(device)
        with torch.autocast(device.type, self._dtype, enabled=self._dtype is not None):
            scores = self._wrapped(ids, mask)
        smoothing, weighted = self.task.profile.label_smoothing, self.task.train.weights is not None
        loss = functional.cross_entropy(
            scores.float(), labels, weight=self._weights, label_smoothing=smoothing,
            reduction="none" if weighted else "sum",
        )  # fmt: skip
        if self.task.train.weights is not None:
            loss = (loss * self.task.train.weights[rows].to(device)).sum()
        return loss, (scores.argmax(1) == labels).float().sum()

    def _row_weights(self, rows: np.ndarray) -> Tensor:
        """(rows,) what each row's loss is multiplied with: its label's weight and its own."""
        device = self.task.workers.device
        weights = self._weights[self.task.train.labels[rows].to(device)]
        return weights if self.task.train.weights is None else weights * self.task.train.weights[rows].to(device)

    def _quiet(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return contextlib.nullcontext()

    def _log(self, examples: int, loss: float, right: int, norm: float, factor: float) -> None:
        self._seen, self._loss, self._right = self._seen + examples, self._loss + loss * examples, self._right + right
        self.task.curves.advance(self.step, loss=loss)
        if self.step % LOG_EVERY and self.step != self._total:
            return
        now = time.monotonic()
        self.task.curves.add(
            self.step,
            self.step / self._per_epoch,
            "train",
            loss=self._loss / self._seen,
            accuracy=self._right / self._seen,
            learning_rate=self.task.profile.learning_rate * factor,
            grad_norm=norm,
            examples_per_second=self._seen / max(now - self._seen_at, 1e-9),
        )
        self._seen, self._seen_at, self._loss, self._right = 0, now, 0.0, 0

    def _evaluate(self) -> None:
        task = self.task
        if self._average is not None:
            self._average.swap()
        scores = logits(task.model, task.validation.texts, task.workers)
        loss = float(functional.cross_entropy(scores, task.validation.labels))
        accuracy = float((scores.argmax(1) == task.validation.labels).float().mean())
        task.curves.add(self.step, self.step / self._per_epoch, "validation", loss=loss, accuracy=accuracy)
        task.curves.advance(self.step, validation_loss=loss, validation_accuracy=accuracy)
        if task.profile.early_stopping_patience:
            self._choose(loss)
        if self._average is not None:
            self._average.swap()
        if task.workers.leads:
            task.curves.write()
        self._seen_at = time.monotonic()

    def _choose(self, loss: float) -> None:
        if loss < self._best_loss:
            self._best_loss, self._without_gain = loss, 0
            self._best = {name: value.detach().clone() for name, value in self._trained.items()}
        else:
            self._without_gain += 1
            self.stopped = self._without_gain >= self.task.profile.early_stopping_patience

    def _save(self) -> None:
        if self.task.workers.leads:
            self._checkpoints.save(self.step, self._tensors(), self._facts())
        self._seen_at = time.monotonic()

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in self._trained.items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.tensors.items()}
        for name, value in self._trained.items():
            for key, moment in self._optimizer.state[value].items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(moment)
        return tensors

    def _facts(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds(),
            "stopped": self.stopped,
            "best_loss": None if math.isinf(self._best_loss) else self._best_loss,
            "without_gain": self._without_gain,
            "window": [self._seen, self._loss, self._right],
            "curves": self.task.curves.rows,
        }

    def restore(self) -> bool:
        """Takes up the newest checkpoint of rank 0; False when there is none."""
        workers = self.task.workers
        state = workers.share(self._checkpoints.newest() if workers.leads else None)
        if state is None:
            return False
        self.step, tensors, facts = state
        self._load(tensors)
        self._before, self.stopped, self._without_gain = facts["seconds"], facts["stopped"], facts["without_gain"]
        self._best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self._seen, self._loss, self._right = facts["window"]
        self.task.curves.rows[:] = facts["curves"]
        return True

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        device = self.task.workers.device
        for name, value in self._trained.items():
            value.copy_(tensors[f"model.{name}"])
            moments = {key: tensors[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            self._optimizer.state[value].update({key: moment.to(device) for key, moment in moments.items()})
            if f"best.{name}" in tensors:
                self._best[name] = tensors[f"best.{name}"].to(device)
        if self.task.profile.ema_decay:
            self._average = Average(self.task.model, self.task.profile.ema_decay)
            for name, value in self._average.tensors.items():
                value.copy_(tensors[f"average.{name}"])
