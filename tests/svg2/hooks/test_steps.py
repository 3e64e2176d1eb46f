"""Step, branch and generation, followed through made-up pipelines of every kind."""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

from svg2.hooks.steps import BATCHED, COND, UNCOND, Tracker, set_on_instance


class Scheduler:
    """Counts steps as diffusers' schedulers do: the index is None until the first step is done."""

    def __init__(self, first=0):
        self.first = first
        self.step_index = None
        self.timesteps = None

    def set_timesteps(self, num_steps):
        self.timesteps = [object()] * num_steps
        self.step_index = None

    def step(self):
        self.step_index = self.first + 1 if self.step_index is None else self.step_index + 1


class Transformer:
    @contextmanager
    def cache_context(self, name):
        yield name


def make(scheduler=None):
    pipe = SimpleNamespace(scheduler=scheduler or Scheduler(), transformer=Transformer())
    return pipe, Tracker(pipe)


def generate(pipe, tracker, num_steps, names=(None,), stop_after=None):
    """One generation, given up without a word after `stop_after` forwards."""
    pipe.scheduler.set_timesteps(num_steps)
    pipe.num_timesteps = num_steps
    seen = []
    for _ in range(num_steps):
        for name in names:
            if len(seen) == stop_after:
                return seen
            if name is None:
                seen.append(tracker.begin_forward())
            else:
                with pipe.transformer.cache_context(name):
                    seen.append(tracker.begin_forward())
        pipe.scheduler.step()
    return seen


def steps(seen):
    return [(position.step, position.branch, is_new) for position, is_new in seen]


def test_two_generations_count_from_0_each():
    pipe, tracker = make()
    expected = [(0, 0, True), (0, 1, False), (1, 0, False), (1, 1, False)]
    for _ in range(2):
        seen = generate(pipe, tracker, 2, (None, None))
        assert steps(seen) == expected
        assert {position.num_steps for position, _ in seen} == {2}


def test_a_new_generation_is_seen_after_any_break():
    for stop_after in range(1, 7):
        pipe, tracker = make()
        generate(pipe, tracker, 3, (None, None), stop_after)
        assert steps(generate(pipe, tracker, 3, (None, None)))[0] == (0, 0, True)


def test_generations_of_a_single_step_are_told_apart():
    pipe, tracker = make()
    for _ in range(3):
        assert steps(generate(pipe, tracker, 1)) == [(0, 0, True)]


def test_the_context_names_the_branch():
    pipe, tracker = make()
    with ExitStack() as undo:
        tracker.follow(pipe.transformer, undo)
        seen = generate(pipe, tracker, 2, ("uncond", "cond"))
        assert [s[:2] for s in steps(seen)] == [(0, UNCOND), (0, COND), (1, UNCOND), (1, COND)]
        assert steps(generate(pipe, tracker, 1, ("cond_uncond",)))[0][1] == BATCHED
        others = steps(generate(pipe, tracker, 2, ("skip", "other")))
        assert [branch for _, branch, _ in others] == [3, 4, 3, 4]
        assert pipe.transformer.cache_context("cond").__enter__() == "cond", "passed on"
    assert vars(pipe.transformer) == {}


def test_a_schedule_entered_midway_starts_at_step_0():
    pipe, tracker = make(Scheduler(first=7))
    for _ in range(2):
        assert [step for step, *_ in steps(generate(pipe, tracker, 3))] == [0, 1, 2]


def test_without_a_step_index_forwards_are_counted_by_branch():
    scheduler = SimpleNamespace(timesteps=None, step=lambda: None)
    scheduler.set_timesteps = lambda n: setattr(scheduler, "timesteps", [0] * n)
    pipe, tracker = make(scheduler)
    assert steps(generate(pipe, tracker, 3)) == [(0, 0, True), (1, 0, False), (2, 0, False)]
    with ExitStack() as undo:
        tracker.follow(pipe.transformer, undo)
        seen = steps(generate(pipe, tracker, 2, ("cond", "uncond")))
    assert seen == [(0, 0, True), (0, 1, False), (1, 0, False), (1, 1, False)]


def test_the_number_of_steps_is_the_schedules_where_the_pipeline_has_none():
    pipe, tracker = make()
    pipe.scheduler.set_timesteps(5)
    assert tracker.begin_forward()[0].num_steps == 5


def test_what_was_set_is_put_back_and_what_others_set_stays():
    target = SimpleNamespace(before=1)
    with ExitStack() as undo:
        set_on_instance(target, "before", 2, undo)
        set_on_instance(target, "added", 3, undo)
        set_on_instance(target, "overlaid", 4, undo)
        target.overlaid = 5
    assert vars(target) == {"before": 1, "overlaid": 5}
