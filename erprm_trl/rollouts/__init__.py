"""Turns questions into graded rollouts: solutions of a policy, and continuations of each of their prefixes. The
rewards of the continuations become soft step labels."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from ..conversations import conversation_steps, render_message
    from ..io.http_client import EndpointError
    from ..steps import clean_step, clean_steps, join_steps, split_steps
    from .collect import collect_rollouts
    from .collect_config import CollectConfig
    from .dataset import RolloutDataset
    from .given_solutions import GivenSolution, GivenSolutions, load_solutions
    from .grading import Grader, extract_answer, grade
    from .label_noise import measure_label_noise
    from .label_options import LabelOptions
    from .questions import Question, Questions, load_questions
    from .records import CollectionSettings, RolloutRow
    from .sampling import Completion, EndpointSampler, Prompt, PromptFormat, Sampler, TransformersSampler, VLLMSampler

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "..conversations": ["conversation_steps", "render_message"],
        "..io.http_client": ["EndpointError"],
        "..steps": ["clean_step", "clean_steps", "join_steps", "split_steps"],
        "collect": ["collect_rollouts"],
        "collect_config": ["CollectConfig"],
        "dataset": ["RolloutDataset"],
        "given_solutions": ["GivenSolution", "GivenSolutions", "load_solutions"],
        "grading": ["Grader", "extract_answer", "grade"],
        "label_noise": ["measure_label_noise"],
        "label_options": ["LabelOptions"],
        "questions": ["Question", "Questions", "load_questions"],
        "records": ["CollectionSettings", "RolloutRow"],
        "sampling": [
            "Completion",
            "Prompt",
            "PromptFormat",
            "Sampler",
            "EndpointSampler",
            "TransformersSampler",
            "VLLMSampler",
        ],
    },
)
