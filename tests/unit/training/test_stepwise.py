"""A training by steps: the numbers of `tlora.train`, whoever draws what in between."""

import copy
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tlora.training.stepwise import Stepwise

OPTIONS = {"max_steps": 5, "batch_size": 4, "learning_rate": 1e-2, "evaluation_limit": 0, "progress": False}


def dropping(seed=0):
    """A model whose numbers depend on the global generator at every step."""
    return adapted_model(seed=seed, lora_dropout=0.3)


def stepwise(model, seed=0, **changes):
    more = changes.pop("callbacks", [])
    options = OPTIONS | changes
    return Stepwise(lambda turns: tlora.train(model, token_rows(), seed=seed, callbacks=[*more, turns], **options))


def test_in_turns_each_has_the_numbers_that_it_has_alone():
    models = [dropping(seed) for seed in (0, 1)]
    alone = [tlora.train(copy.deepcopy(m), token_rows(), seed=s, **OPTIONS) for s, m in enumerate(models)]
    turns = [stepwise(model, seed) for seed, model in enumerate(models)]
    states = []
    for step in range(6):
        for one in turns:
            torch.manual_seed(step)  # as evaluations and others would
            random.seed(step)
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
            assert one.advance() == (step < 5)
            assert one.steps == step
            after = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
            states.append(all(np.array_equal(a, b) for a, b in zip(before[:2], after[:2], strict=True)))
            states.append(before[2] == after[2])
    assert all(states)
    for one, expected in zip(turns, alone, strict=True):
        assert one.over
        assert not one.advance()
        np.testing.assert_array_equal(one.run.history["loss"], expected.history["loss"])
        assert all(tensor.equal(one.run.adapter[name]) for name, tensor in expected.adapter.items())
        assert one.run.seconds == one.seconds > 0


def test_ended_early_it_keeps_what_was_trained():
    model = dropping()
    one = stepwise(model)
    for _ in range(4):
        one.advance()
    threads = threading.active_count()
    one.end()
    one.end()
    assert (one.steps, one.run.steps, one.run.interrupted) == (3, 3, True)
    assert threading.active_count() == threads - 1
    expected = dropping()
    tlora.train(expected, token_rows(), seed=0, callbacks=[_Ends(3)], **OPTIONS)
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert ours.equal(theirs), name


class _Ends(TrainerCallback):
    stopped = True

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_what_never_began_has_no_run():
    one = stepwise(dropping())
    one.end()
    assert one.run is None


def test_an_error_reaches_whoever_goes_on():
    one = stepwise(dropping(), nonsense=1)
    with pytest.raises(TypeError, match="no argument 'nonsense'"):
        one.advance()
    assert one.over
    one.end()


class _Interrupts(TrainerCallback):
    """What Ctrl-C does in the midst of a step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_in_a_step_it_finishes_the_step():
    one = stepwise(dropping(), callbacks=[_Interrupts()])
    one.advance()
    one.advance()
    with pytest.raises(KeyboardInterrupt):
        one.advance()
    one.end()
    assert (one.run.steps, one.run.interrupted) == (2, True)
