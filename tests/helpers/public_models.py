"""Tiny random models in the formats of public process reward models, with a slow reference implementation of each
format: one solution at a time, text written by hand, one forward pass per step, and all logits."""

import json
import unicodedata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
    Qwen2Model,
)
from zoo import CORPUS

from erprm_trl import PRMFormat


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,  # large enough for different scores
}
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def mistral_tokenizer(legacy: bool) -> PreTrainedTokenizerFast:
    """A tokenizer like Mistral's: a mark for a space, a byte for a newline, " ки" as one token, and BOS. `legacy`
    selects the older file format."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [line for text in CORPUS for line in text.splitlines()] + ["Step 1: 2 + 3 = 5 ки", "Step 2: - 4 ки"] * 20
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    bos = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_tokenizer(special: list[str], bos: str | None = None, adds_bos=False, trim=False) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 3's and Qwen's: byte-level, with separate newlines, and special tokens inside text."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    tokenizer.train_from_iterator([*CORPUS, *["one.\n\ntwo.\n\n", "+", "-"] * 20], trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    steps = [processors.ByteLevel(trim_offsets=trim)]
    if adds_bos:
        pair = (bos, tokenizer.token_to_id(bos))
        steps.append(processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[pair]))
    tokenizer.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def llama3_tokenizer(trim=False):
    names = ["begin_of_text", "start_header_id", "end_header_id", "eot_id"]
    return byte_tokenizer([f"<|{name}|>" for name in names], "<|begin_of_text|>", adds_bos=True, trim=trim)


def qwen_tokenizer(bos=None):
    return byte_tokenizer(["<|im_start|>", "<|im_end|>", "<extra_0>"], bos)


def save(folder: Path, model, tokenizer, changed: dict | None = None, **config) -> tuple[str, PreTrainedTokenizerFast]:
    """Saves a model with a changed state dict and config.json, like the checkpoint of a custom class. Returns its path
    and the loaded tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if changed:
        state = load_file(folder / "model.safetensors")
        state = {name: value for name, value in state.items() if not name.startswith("score")} | changed
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(folder), AutoTokenizer.from_pretrained(folder)  # Qwen2's class splits words differently


def qwen_config(tokenizer, **more):
    return Qwen2Config(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=0, **SIZES, **more)


def log_probs(model, ids: list[int]) -> torch.Tensor:
    """The log-probability of each token except the first."""
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


class MathShepherd:
    """A Mistral model with " ки" after each step."""

    legacy = False

    def __init__(self, folder):
        self.tokenizer = mistral_tokenizer(self.legacy)
        config = MistralConfig(vocab_size=len(self.tokenizer), pad_token_id=0, **SIZES)
        self.path, self.tokenizer = save(folder, MistralForCausalLM(config), self.tokenizer)
        self.prm_format = PRMFormat.preset("math-shepherd")
        self.model = AutoModelForCausalLM.from_pretrained(self.path)

    def score(self, question, steps):
        good, bad = self.tokenizer.convert_tokens_to_ids(["▁+", "▁-"])
        scores = []
        for count in range(1, len(steps) + 1):
            text = question + " " + "\n".join(step + " ки" for step in steps[:count])
            logits = self.model(torch.tensor([self.tokenizer(text)["input_ids"]])).logits[0, -1]
            scores.append(logits[[good, bad]].softmax(-1)[0].item())
        return scores


class LegacyMathShepherd(MathShepherd):
    """Math-Shepherd with a normaliser instead of a pre-tokeniser."""

    legacy = True


class RLHFlow:
    """Llama 3.1's chat, where the assistant answers each step."""

    preset, trim = "rlhflow", False
    system = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

    def __init__(self, folder):
        self.tokenizer = llama3_tokenizer(self.trim)
        config = LlamaConfig(vocab_size=len(self.tokenizer), pad_token_id=0, **SIZES)
        self.path, self.tokenizer = save(folder, LlamaForCausalLM(config), self.tokenizer)
        self.prm_format = PRMFormat.preset(self.preset)
        self.model = AutoModelForCausalLM.from_pretrained(self.path)

    def score(self, question, steps):
        def turn(role, text):
            return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

        chat = "<|begin_of_text|>"
        chat += turn("system", self.system) if self.system else ""
        candidates = [self.tokenizer.convert_tokens_to_ids(token) for token in "+-"]
        scores = []
        for index, step in enumerate(steps):
            chat += turn("user", step if index else f"{question} {step}") + turn("assistant", "+")
            ids = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
            logits = self.model(torch.tensor([ids])).logits[
                0, -3, candidates
            ]  # followed by "+" and the end of the turn
            scores.append(logits.softmax(-1)[0].item())
        return scores


class TrimmedRLHFlow(RLHFlow):
    """RLHFlow with a tokenizer that leaves white space out of its offsets."""

    trim = True


class FirstRLHFlow(RLHFlow):
    """RLHFlow with Llama 3.1's first chat template, which has no system turn."""

    preset, system = "rlhflow-mistral", None


class ERPRM:
    """One text of steps and separators, with nothing between them."""

    def __init__(self, folder):
        config = LlamaConfig(vocab_size=len(llama3_tokenizer()), pad_token_id=0, **SIZES)
        self.path, self.tokenizer = save(folder, LlamaForCausalLM(config), llama3_tokenizer())
        self.prm_format = PRMFormat.preset("er-prm")
        self.model = AutoModelForCausalLM.from_pretrained(self.path)

    def score(self, question, steps):
        candidates = [self.tokenizer.encode(token, add_special_tokens=False)[0] for token in (" +", " -")]
        scores = []
        for count in range(1, len(steps) + 1):
            ids = self.tokenizer.encode(f"{question} " + "".join(f"{step} ки" for step in steps[:count]))
            scores.append(self.model(torch.tensor([ids])).logits[0, -1, candidates].softmax(-1)[0].item())
        return scores


class QwenPRM:
    """A custom class: a base model, two linear layers with a ReLU between them, and two classes at <extra_0>."""

    def __init__(self, folder):
        self.tokenizer = qwen_tokenizer()
        model = Qwen2ForTokenClassification(qwen_config(self.tokenizer, num_labels=2))
        sizes = {"score.0.weight": (16, 16), "score.0.bias": (16,), "score.2.weight": (2, 16), "score.2.bias": (2,)}
        self.head = {name: torch.randn(size) / 4 for name, size in sizes.items()}
        code = {"AutoConfig": "configuration_rm.Config", "AutoModel": "modeling_rm.Qwen2ForProcessRewardModel"}
        self.path, self.tokenizer = save(
            folder, model, self.tokenizer, self.head, architectures=["Qwen2ForProcessRewardModel"], auto_map=code
        )
        self.prm_format = PRMFormat.preset("qwen2.5-math-prm")
        self.trunk = model.model

    def score(self, question, steps):
        prompt = f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        scores = []
        for count in range(1, len(steps) + 1):
            text = prompt + "<|im_start|>assistant\n" + "".join(step + "<extra_0>" for step in steps[:count])
            hidden = self.trunk(torch.tensor([self.tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
            hidden = (self.head["score.0.weight"] @ hidden + self.head["score.0.bias"]).clamp(min=0)
            scores.append((self.head["score.2.weight"] @ hidden + self.head["score.2.bias"]).softmax(-1)[1].item())
        return scores


class Skywork:
    """A language model with a value head. The question and the steps are encoded one by one."""

    bos = "<|im_start|>"

    def __init__(self, folder):
        self.tokenizer = qwen_tokenizer(self.bos)
        model = Qwen2ForCausalLM(qwen_config(self.tokenizer))
        self.head = {"v_head.summary.weight": torch.randn(1, 16), "v_head.summary.bias": torch.randn(1)}
        self.path, self.tokenizer = save(folder, model, self.tokenizer, self.head, architectures=["Qwen2ForPrmModel"])
        self.prm_format = PRMFormat.preset("skywork-o1-prm")
        self.trunk: Qwen2Model = model.model

    def score(self, question, steps):
        ids = self.tokenizer.encode(self.bos + question + "\n")
        scores = []
        for step in steps:
            ids = ids + self.tokenizer.encode(step) + self.tokenizer.encode("\n")
            hidden = self.trunk(torch.tensor([ids])).last_hidden_state[0, -1]
            value = self.head["v_head.summary.weight"] @ hidden + self.head["v_head.summary.bias"]
            scores.append(1 / (1 + (-value).exp()).item())
        return scores


class Eurus:
    """Two language models, scored by the log-ratio of the tokens."""

    cumulative = True

    def __init__(self, folder):
        self.tokenizer = qwen_tokenizer()
        config = qwen_config(self.tokenizer)
        folder.mkdir()
        self.models = [Qwen2ForCausalLM(config), Qwen2ForCausalLM(config)]
        (self.path, _), (reference, self.tokenizer) = (
            save(folder / name, model, self.tokenizer)
            for name, model in zip(("policy", "reference"), self.models, strict=True)
        )
        fields = vars(PRMFormat.preset("eurus-prm")) | {"reference_model": reference, "cumulative": self.cumulative}
        self.prm_format = PRMFormat(**{**fields, "beta": 0.05})  # larger than published, so that scores differ

    def score(self, question, steps):
        prompt = f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        prompt += "<|im_start|>assistant\n"
        ids = self.tokenizer(prompt + "\n\n".join(steps))["input_ids"]
        ratio = log_probs(self.models[0], ids) - log_probs(self.models[1], ids)
        # Each character of a token represents a byte.
        sizes = torch.tensor([len(token.encode() if token[0] == "<" else token) for token in self.tokens(ids)])
        ends = sizes.cumsum(0)
        prompt_size = len(prompt.encode())
        sums = []
        for count in range(1, len(steps) + 1):
            text = unicodedata.normalize("NFC", "\n\n".join(steps[:count]))  # like Qwen's tokenizer
            size = prompt_size + len(text.encode())
            # tokens of the solution that begin before the step's end
            own = (ends - sizes >= prompt_size) & (ends - sizes < size)
            sums.append(ratio[own[1:]].sum())
        if not self.cumulative:
            sums = [later - earlier for later, earlier in zip(sums, [0, *sums], strict=False)]
        return [torch.sigmoid(0.05 * torch.as_tensor(total)).item() for total in sums]

    def tokens(self, ids):
        return self.tokenizer.convert_ids_to_tokens(ids)


class StepwiseEurus(Eurus):
    """Eurus with the log-ratio of each step alone."""

    cumulative = False


class TRLPRM:
    """A model of TRL's PRMTrainer: two classes at a newline."""

    preset, bos, adds_bos = "trl-prm", None, False

    def make(self):
        tokenizer = byte_tokenizer(["<bos>"], self.bos, self.adds_bos)
        return tokenizer, Qwen2ForTokenClassification(qwen_config(tokenizer, num_labels=2))

    def __init__(self, folder):
        self.tokenizer, model = self.make()
        self.model = model.eval()
        torch.nn.init.normal_(self.model.score.weight)
        self.path, self.tokenizer = save(folder, self.model, self.tokenizer)
        self.prm_format = PRMFormat.preset(self.preset)

    def score(self, question, steps):
        def encode(text):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        ids = ([self.tokenizer.bos_token_id] if self.bos else []) + encode(question)
        scores = []
        for step in steps:
            ids = ids + encode(step) + encode("\n")
            scores.append(self.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[1].item())
        return scores


class TRLPRMWithBOS(TRLPRM):
    """A model of TRL's PRMTrainer whose tokenizer adds a BOS token itself."""

    bos, adds_bos = "<bos>", True


class TRLPRMWithSpaceBeforeText(TRLPRM):
    """A model of TRL's PRMTrainer whose tokenizer, like Llama 2's, puts a space before a text, but not after BOS."""

    bos = "<s>"

    def make(self):
        tokenizer = mistral_tokenizer(legacy=False)
        config = MistralConfig(vocab_size=len(tokenizer), pad_token_id=0, num_labels=2, **SIZES)
        return tokenizer, MistralForTokenClassification(config)


class PURE(TRLPRM):
    """A model of TRL's PRMTrainer whose tokenizer has no BOS token."""

    preset = "pure-prm"


FAMILIES = [
    MathShepherd, LegacyMathShepherd, ERPRM, RLHFlow, TrimmedRLHFlow, FirstRLHFlow, QwenPRM, Skywork, Eurus,
    StepwiseEurus, TRLPRM, TRLPRMWithBOS, TRLPRMWithSpaceBeforeText, PURE,
]  # fmt: skip
