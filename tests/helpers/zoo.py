"""Tokenizers and models like real ones, small enough to build in a test."""

import torch
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
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from erprm_trl import PRMFormat, dial


CORPUS = [
    "Natalia sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 clips altogether.\nThe answer is \\boxed{72}.",
    "Step 1: 7 + 15 = 22, a total of 22 apples.\nStep 2: 22 * 3 = 66.\n\n#### 66",
    "a + b - c + d - e\n",
    "Käse kostet 3 €; ½ davon ist … 1,5 €.\n",
] * 20
STEPS = ["Natalia sold 48/2 = 24 clips in May.", "She sold 48+24 = 72 €, ½ of it!", "The answer is \\boxed{72}."]


def load_dial_policy():
    """The shipped policy and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(dial.BASE_PATH), AutoTokenizer.from_pretrained(dial.BASE_PATH)


def byte_level_bpe():
    """A tokenizer like GPT-2's: byte-level, no normaliser, no special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=special)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def sentencepiece_style(bos=False, eos=False):
    """A tokenizer like Llama 2's: a mark for each space and before the first word, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    if bos or eos:
        template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
        pairs = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    # the separator is one token, as in Math-Shepherd's models
    tokenizer.add_tokens([AddedToken("ки", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_level():
    """The dial tokenizer."""
    return dial.build_tokenizer()


ZOO = {
    "byte-level BPE": (byte_level_bpe, PRMFormat(separator="\n", prompt_template="Question: {question}\n")),
    "SentencePiece style": (sentencepiece_style, PRMFormat(separator="ки")),
    "adds BOS": (lambda: sentencepiece_style(bos=True), PRMFormat(separator="ки")),
    "adds BOS and EOS": (lambda: sentencepiece_style(bos=True, eos=True), PRMFormat(separator="ки")),
    "WordLevel": (
        word_level,
        PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}"),
    ),
}


def tiny_llama(vocab_size, head="lm", **config):
    """A random Llama of about 10,000 parameters."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, **config}
    config = LlamaConfig(vocab_size=vocab_size, **settings)
    if head == "lm":
        return LlamaForCausalLM(config)
    config.num_labels = 1
    return AutoModelForTokenClassification.from_config(config)


def save_tiny(folder, tokenizer, head="lm", **config):
    """Saves a tiny model with its tokenizer and returns the folder's name."""
    tiny_llama(len(tokenizer), head, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# Tokenizers that change the text


def _fast(model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, **special):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def wordpiece_bert():
    """A tokenizer like BERT's: lower case, no accents or control characters, [CLS] and [SEP] around a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[STEP]"]
    tokenizer = _fast(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special),
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    pairs = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=pairs
    )
    return tokenizer


def unigram_nmt():
    """A tokenizer like T5's: NFKC, merged white space, a mark per word, EOS after a text and as padding."""
    return _fast(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=120, special_tokens=["</s>", "<unk>", "<s>", "ки"], unk_token="<unk>"),
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoders.Metaspace(),
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )


def greedy_separator():
    """A byte-level tokenizer whose separator includes the white space around it, without BOS, EOS or unknown token."""
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([AddedToken("<|step|>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|endoftext|>")


def silent_bpe():
    """A lower-case tokenizer of digits and signs that skips unknown characters, with BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.train_from_iterator(["0123456789+-=\n"], trainers.BpeTrainer(special_tokens=["<s>", "</s>"]))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.add_tokens([AddedToken("<STEP>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


ODD = {
    "WordPiece": (wordpiece_bert, "[STEP]"),
    "Unigram": (unigram_nmt, "ки"),
    "greedy separator": (greedy_separator, "<|step|>"),
    "silent BPE": (silent_bpe, "<STEP>"),
    "byte-level BPE": (byte_level_bpe, "\n"),
    "SentencePiece style": (lambda: sentencepiece_style(bos=True, eos=True), "ки"),
}
