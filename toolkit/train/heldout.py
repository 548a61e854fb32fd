"""Looking at what is not trained on, while it trains: margin, divergence, refusals.

Every so many steps the whole model, nothing removed, is held against the model that the run
began with (the reference):

- the **margin** of held-out pairs: beta times the log-ratio to the reference of the chosen
  answer less that of the rejected one (the implicit reward of Eq. 12), mean over pairs;
- the **divergence** KL(reference || model) of the next token, in nats, mean over the tokens
  of the reference's own answers to harmless prompts;
- the **refusals** of harmful and of harmless prompts, greedy, by the refusal judge.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from toolkit.errors import SafeNeuronError
from toolkit.forced import Forced, answer_logits, forced
from toolkit.generate import generate
from toolkit.judge.perplexity import answer_losses
from toolkit.judge.refusal import judge_refusal, settles
from toolkit.models.load import LoadedModel
from toolkit.progress import OnEvent
from toolkit.train.pairs import PreferencePair
from toolkit.train.parallel import any_process

STATE = "heldout.json"
KL_TOKENS = 24  # of an answer: the reference keeps a whole distribution for each


@dataclass(frozen=True)
class HeldOut:
    """What is looked at, and how often.

    Args:
        pairs: none of them trained on.
        harmful: prompts to refuse.
        harmless: prompts to answer.
        every: steps between two looks; the first is before the first step.
        patience: looks without a better margin after which training ends; None for never.
        answer_tokens: of an answer.
    """

    pairs: Sequence[PreferencePair]
    harmful: Sequence[str]
    harmless: Sequence[str]
    every: int
    patience: int | None = None
    answer_tokens: int = 24


@dataclass(frozen=True)
class Look:
    """What one look saw.

    Args:
        margin: mean over held-out pairs.
        accuracy: share of them whose margin is above zero.
        kl: nats a token.
        refused_harmful: of so many harmful prompts.
        refused_harmless: of so many harmless ones.
    """

    margin: float
    accuracy: float
    kl: float
    refused_harmful: int
    refused_harmless: int


class Watched:
    """The held-out slice and what the reference makes of it.

    Args:
        loaded: the model, with the weights that the run begins with.
        held: the slice.
        beta: of the margin.
        dtype: of the arithmetic, ``bfloat16`` or ``float32``.
    """

    def __init__(self, loaded: LoadedModel, held: HeldOut, beta: float, dtype: str) -> None:
        self._loaded, self._held, self._beta, self._dtype = loaded, held, beta, dtype
        with self._whole():
            answers = generate(loaded, held.harmless, KL_TOKENS)
            told = [
                forced(loaded.tokenizer, prompt, answer)
                for prompt, answer in zip(held.harmless, answers, strict=True)
            ]
            self._rows = [row for row in told if row.answer]
            self._reference = [self._distribution(row) for row in self._rows]
            self._start = self._log_probs()

    def look(self) -> Look:
        """Hold the model as it now is against the reference."""
        held = self._held
        with self._whole():
            margins = self._beta * (self._log_probs() - self._start)
            divergence = [
                (before.exp() * (before - self._distribution(row))).sum(-1)
                for before, row in zip(self._reference, self._rows, strict=True)
            ]
            refused = [self._refusals(prompts) for prompts in (held.harmful, held.harmless)]
        kl = torch.cat(divergence).mean().item() if divergence else 0.0
        return Look(
            margin=margins.mean().item(),
            accuracy=(margins > 0).double().mean().item(),
            kl=kl,
            refused_harmful=refused[0],
            refused_harmless=refused[1],
        )

    def _refusals(self, prompts: Sequence[str]) -> int:
        tokens = self._held.answer_tokens
        answers = generate(self._loaded, prompts, tokens, settled=settles)
        return sum(judge_refusal(answer).verdict == "refused" for answer in answers)

    def _log_probs(self) -> Tensor:
        """Log-probability of the chosen answer less that of the rejected one, ``[pairs]``."""
        pairs = self._held.pairs
        prompts = [pair.prompt for pair in pairs]
        sides = [
            answer_losses(self._loaded, prompts, answers)
            for answers in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        ]
        found = [lost.total - won.total for won, lost in zip(*sides, strict=True)]
        return torch.tensor(found, dtype=torch.float64)

    def _distribution(self, row: Forced) -> Tensor:
        """Log-probabilities of every token at each answer token, ``[tokens, vocabulary]``."""
        (logits,) = answer_logits(self._loaded, [row])
        return logits.float().log_softmax(-1).cpu()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """The model in evaluation mode, in the run's arithmetic."""
        model = self._loaded.model
        training = model.training
        model.eval()
        half = self._dtype == "bfloat16"
        try:
            with torch.autocast(self._loaded.device.type, torch.bfloat16, enabled=half):
                yield
        finally:
            model.train(training)


class HeldOutCallback(TrainerCallback):
    """Tells an event of each look, and ends training when the margin no longer rises.

    What it remembers is part of every checkpoint. Where it ends the run nothing is saved: a
    process killed after that goes on from the checkpoint before, and ends at the same step.

    Args:
        watched: the slice.
        held: how often, and how patient.
        on_event: hears of each look.
        resumed: the checkpoint that the run goes on from, if any.
    """

    def __init__(
        self, watched: Watched, held: HeldOut, on_event: OnEvent, resumed: Path | None
    ) -> None:
        self._watched, self._held, self._on_event = watched, held, on_event
        self._best, self._worse = float("-inf"), 0
        if resumed is not None and (resumed / STATE).is_file():
            kept = json.loads((resumed / STATE).read_text("utf-8"))
            self._best, self._worse = kept["best"], kept["worse"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look before the first step."""
        if state.global_step == 0:
            self._look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look every so many steps, and at the end."""
        step = state.global_step
        if step % self._held.every and step < state.max_steps:
            return
        self._look(step)
        patience = self._held.patience
        over = patience is not None and self._worse >= patience and step < state.max_steps
        if any_process(over, args.device):
            self._on_event(
                {
                    "kind": "note",
                    "text": f"ended at step {step} of {state.max_steps}: the held-out margin has "
                    f"not risen above {self._best:.3g} for {self._worse} looks",
                }
            )
            control.should_training_stop = True
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the best margin beside the weights."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            kept = {"best": self._best, "worse": self._worse}
            (folder / STATE).write_text(json.dumps(kept), "utf-8")

    def _look(self, step: int) -> None:
        seen = self._watched.look()
        if seen.margin > self._best:
            self._best, self._worse = seen.margin, 0
        else:
            self._worse += 1
        self._on_event(
            {
                "kind": "held-out",
                "step": step,
                **vars(seen),
                "pairs": len(self._held.pairs),
                "harmful": len(self._held.harmful),
                "harmless": len(self._held.harmless),
            }
        )


def split(
    pairs: Sequence[PreferencePair], count: int, choose: Callable[[int, int], list[int]]
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Set pairs aside: what trains, and what is looked at.

    Pairs of one prompt stay on one side, so that no held-out prompt is trained on.

    Args:
        pairs: all of them.
        count: how many to set aside, at least.
        choose: draws so many numbers below a bound, without repeating one.

    Raises:
        SafeNeuronError: too few would be left.
    """
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    aside: set[str] = set()
    taken = 0
    times: dict[str, int] = {}
    for pair in pairs:
        times[pair.prompt] = times.get(pair.prompt, 0) + 1
    for place in choose(len(prompts), len(prompts)):
        if taken >= count:
            break
        aside.add(prompts[place])
        taken += times[prompts[place]]
    trained = [pair for pair in pairs if pair.prompt not in aside]
    if len(trained) < count:
        raise SafeNeuronError(
            f"{len(pairs)} pairs are too few to hold out {count}; lower --held-out, or give more"
        )
    return trained, [pair for pair in pairs if pair.prompt in aside]
