"""A sampler that answers by a function of the prompt, for tests of scorers that sample."""

from erprm_trl.rollouts import Completion


class ScriptedSampler:
    """
    Returns the texts of `answer(prompt, seed, sample)`. `calls` holds the prompts and the number of samples per call,
    and `seeds` the seeds of all prompts. With `takes_seeds`, it has the parameter `prompt_seeds`.
    """

    def __init__(self, answer, *, temperature=1.0, takes_seeds=True):
        self.answer, self.calls, self.seeds = answer, [], []
        self.settings = {"backend": "scripted", "model": "scripted", "temperature": temperature}
        self.sample = self._sample_with_seeds if takes_seeds else self._sample

    def _sample_with_seeds(self, prompts, num_samples, seed, prompt_seeds=None):
        self.calls.append((list(prompts), num_samples))
        self.seeds += prompt_seeds
        return [
            [Completion(self.answer(prompt, own, index), True, 3) for index in range(num_samples)]
            for prompt, own in zip(prompts, prompt_seeds, strict=True)
        ]

    def _sample(self, prompts, num_samples, seed):
        return self._sample_with_seeds(prompts, num_samples, 0, [seed] * len(prompts))
