"""Questions become graded rollouts: solutions from a policy, and continuations of each of their prefixes."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .collect import collect_rollouts
    from .collect_config import CollectConfig
    from .endpoint_client import EndpointError
    from .endpoint_sampling import EndpointSampler
    from .grading import Grader, extract_answer, grade
    from .questions import Question, Questions, load_questions
    from .sampling import Completion, Prompt, PromptFormat, Sampler
    from .steps import clean_step, clean_steps, split_steps
    from .store import RolloutDataset
    from .transformers_sampling import TransformersSampler
    from .vllm_sampling import VLLMSampler

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "collect": ["collect_rollouts"],
        "collect_config": ["CollectConfig"],
        "endpoint_client": ["EndpointError"],
        "endpoint_sampling": ["EndpointSampler"],
        "grading": ["Grader", "extract_answer", "grade"],
        "questions": ["Question", "Questions", "load_questions"],
        "sampling": ["Completion", "Prompt", "PromptFormat", "Sampler"],
        "steps": ["clean_step", "clean_steps", "split_steps"],
        "store": ["RolloutDataset"],
        "transformers_sampling": ["TransformersSampler"],
        "vllm_sampling": ["VLLMSampler"],
    },
)
