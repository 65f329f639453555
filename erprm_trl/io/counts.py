"""Writes counts in sentences, in the singular or plural."""


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """
    A count with the right form of its noun.

    Args:
        count (`int`):
            The count.
        singular (`str`):
            Text after the count 1: a noun, or a noun with its verb.
        plural (`str`, *optional*):
            Text after any other count. Defaults to the singular with an `s`.

    Returns:
        `str`: the count and the text.

    Example:

    ```python
    >>> counted(1, "question"), counted(1000, "question"), counted(0, "prefix is left out", "prefixes are left out")
    ('1 question', '1,000 questions', '0 prefixes are left out')
    ```
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
