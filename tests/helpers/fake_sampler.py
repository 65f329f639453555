"""A sampler without a model, for tests of the code around sampling."""

import random

from erprm_trl.rollouts import Completion


class FakeSampler:
    """Returns random completions that depend on the prompt and the seed. `on_call` runs before each call."""

    def __init__(self, settings=None, on_call=None):
        self.settings = settings or {"backend": "fake", "temperature": 1.0}
        self.on_call = on_call
        self.calls = []

    def sample(self, prompts, num_samples, seed):
        if self.on_call:
            self.on_call()
        self.calls.append((len(prompts), num_samples, seed))
        rng = random.Random(f"{seed}/{prompts}")
        return [[self._completion(rng, prompt.prefix) for _ in range(num_samples)] for prompt in prompts]

    def _completion(self, rng, prefix):
        steps = [f"line {rng.randrange(9)} \u2028 é\n" for _ in range(rng.randrange(4))]
        return Completion("".join(steps) + f"answer {rng.randrange(3)}", rng.random() < 0.9, 5)
