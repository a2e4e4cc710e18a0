r"""Reads a critic's verdict. Pure.

Only an explicit verdict counts: the last line when that is nothing but a judgement, else what follows the
last "verdict". "INCORRECT", "not correct", "isn't correct" and "CORRECT or INCORRECT" are no approval.
"""

import re

_MARKUP = re.compile(r"</?\w+>|\\(?:boxed|text|textbf)|[*_`{}$#]")
_NOT = r"(?P<not>not|never|hardly|n't|isn't|cannot be|can't be)?"
_JUDGEMENT = rf"{_NOT}\s*(?:quite |fully |entirely |completely )?(?P<word>correct|incorrect)\b"
_SUBJECT = r"(?:(?:so|therefore|thus|hence)?,?\s*(?:the|this|that|your|my|it)\s*(?:\w+\s){0,3}?(?:is|was)\s*)?"
# A choice that is only repeated ("CORRECT or INCORRECT"), asked ("CORRECT?") or made conditional decides
# nothing.
_NOT_REPEATED = r"(?!\s*(?:or|/|\||\?|if|only|except|but|apart))"
_VERDICT = re.compile(rf"\bverdict\b\s*(?:is|:|=|-|–|—)*\s*{_SUBJECT}{_JUDGEMENT}{_NOT_REPEATED}", re.IGNORECASE)
_LAST_LINE = re.compile(rf"{_SUBJECT}{_JUDGEMENT}\s*[.!]*", re.IGNORECASE)


def says_correct(review: str) -> bool:
    """Whether the review states that the answer is correct."""
    text = _MARKUP.sub("", review).replace("’", "'").strip()
    decision = _LAST_LINE.fullmatch(text[text.rfind("\n") + 1 :].strip())
    if decision is None:
        stated = list(_VERDICT.finditer(text))
        decision = stated[-1] if stated else None
    return decision is not None and decision["not"] is None and decision["word"].lower() == "correct"
