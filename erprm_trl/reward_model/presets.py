"""The formats of public process reward models, as values of the fields of `PRMFormat`, and the names of those models.

`PRMFormat.preset(name)` reads them. `expected_ids` are the ids of the tokenizer that each model was trained with.
"""

from pathlib import Path
from typing import Any


# Qwen2.5-Math's chat with the system prompt that its template has by default.
_QWEN_MATH_CHAT = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)

# RLHFlow's chat. Each step is a user's turn, the first behind the question; the score is read where the assistant's
# answer is predicted, after a "+" for every step before.
_RLHFLOW: dict[str, Any] = {
    "separator": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "between_steps": "+<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "prompt_template": "{bos_token}<|start_header_id|>user<|end_header_id|>\n\n{question} ",
    "tokenization": "text",
    "splitter": "blank_line",
    "aggregation": "mean",
    "expected_ids": {"separator": 271, "good_token": 10, "bad_token": 12},
}

PRESETS: dict[str, dict[str, Any]] = {
    # peiyi9979/math-shepherd-mistral-7b-prm. Steps begin with "Step 1: ", "Step 2: ", ...
    "math-shepherd": {
        "separator": " ки",
        "between_steps": "\n",
        "prompt_template": "{question} ",
        "tokenization": "text",
        "expected_ids": {"separator": 12902, "good_token": 648, "bad_token": 387},
    },
    # HanningZhang/Llama3.1-Math-PRM, the paper's. A step follows its separator without a line feed, and the two tokens
    # have a space in front. Established from an independent evaluation of the model, compute-optimal-tts.
    "er-prm": {
        "separator": " ки",
        "good_token": " +",
        "bad_token": " -",
        "prompt_template": "{question} ",
        "tokenization": "text",
        "expected_ids": {"separator": 116624, "good_token": 489, "bad_token": 482},
    },
    # RLHFlow/Llama3.1-8B-PRM-Mistral-Data: Llama 3.1's first chat template, which has no system turn.
    "rlhflow-mistral": _RLHFLOW,
    # RLHFlow/Llama3.1-8B-PRM-Deepseek-Data: the later template, whose system turn has two dates.
    "rlhflow": {
        **_RLHFLOW,
        "prompt_template": (
            "{bos_token}<|start_header_id|>system<|end_header_id|>\n\n"
            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n{question} "
        ),
    },
    # Qwen/Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K.
    "qwen2.5-math-prm": {
        "separator": "<extra_0>",
        "prompt_template": _QWEN_MATH_CHAT,
        "head": "token_mlp",
        "num_labels": 2,
        "tokenization": "text",
        "splitter": "blank_line",
        "aggregation": "product",
        "expected_ids": {"separator": 151651},
    },
    # Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B. Lines keep the white space at their ends. The published code
    # also scores blank lines; here a blank line belongs to the step before it.
    "skywork-o1-prm": {
        "separator": "\n",
        "prompt_template": "{bos_token}{question}\n",
        "head": "token",
        "splitter": "line",
        "aggregation": "mean",
        "expected_ids": {"separator": 198},
    },
    # jinachris/PURE-PRM-7B, as its model card describes it; trained by TRL. The published reward of a step is
    # 2 * score - 1, and its aggregate a soft minimum.
    "pure-prm": {
        "separator": "\n",
        "prompt_template": "{question}",
        "head": "token",
        "num_labels": 2,
        "splitter": "blank_line",
        "expected_ids": {"separator": 198},
    },
    # PRIME-RL/EurusPRM-Stage1 and -Stage2. Steps begin with "Step 1: ", "Step 2: ", ... The published example reads a
    # step's sum a token or two behind its end; here it is read at its end.
    "eurus-prm": {
        "separator": "",
        "between_steps": "\n\n",
        "prompt_template": _QWEN_MATH_CHAT,
        "head": "implicit",
        "reference_model": "Qwen/Qwen2.5-Math-7B-Instruct",
        "beta": 0.001,
        "tokenization": "text",
        "splitter": "blank_line",
    },
    # What TRL's PRMTrainer saved (until 1.13), with its default separator.
    "trl-prm": {"separator": "\n", "prompt_template": "{bos_token}{question}", "head": "token", "num_labels": 2},
}

# The names under which these models are known, without their owner.
MODELS = {
    "math-shepherd-mistral-7b-prm": "math-shepherd",
    "Llama3.1-Math-PRM": "er-prm",
    "Llama3.1-8B-PRM-Mistral-Data": "rlhflow-mistral",
    "Llama3.1-8B-PRM-Deepseek-Data": "rlhflow",
    "Qwen2.5-Math-PRM-7B": "qwen2.5-math-prm",
    "Qwen2.5-Math-PRM-72B": "qwen2.5-math-prm",
    "Qwen2.5-Math-7B-PRM800K": "qwen2.5-math-prm",
    "Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "skywork-o1-prm",
    "Skywork-o1-Open-PRM-Qwen-2.5-7B": "skywork-o1-prm",
    "PURE-PRM-7B": "pure-prm",
    "EurusPRM-Stage1": "eurus-prm",
    "EurusPRM-Stage2": "eurus-prm",
}


def preset_of(path_or_id: str | Path) -> str | None:
    """The preset of a public model, by the last part of its id or of the folder that it was downloaded to."""
    return MODELS.get(Path(path_or_id).name)
