"""The tokenizer of the dial task, with one id per word. It is shipped with the base model."""

from .task import MOVES, NAMES, POSITIONS, SEPARATOR


GOOD_MARK, BAD_MARK = "✓", "✗"
SPECIAL_TOKENS = ("<pad>", "<unk>", "</s>")
WORDS = (
    *SPECIAL_TOKENS,
    SEPARATOR,
    GOOD_MARK,
    BAD_MARK,
    *(str(position) for position in range(POSITIONS)),
    *MOVES,
    *MOVES.values(),
    *("=", ".", "?", "dial", "answer", "check"),
    *NAMES,
)


def build_tokenizer(more_words: tuple[str, ...] = ()):
    """
    Builds a `PreTrainedTokenizerFast` that maps words between spaces to ids and adds no special tokens.

    Args:
        more_words (`tuple[str, ...]`, *optional*):
            Words to add after [`WORDS`], whose ids do not change.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate((*WORDS, *more_words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
