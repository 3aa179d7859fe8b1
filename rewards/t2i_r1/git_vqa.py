"""T2I-R1's rules of GIT-VQA; the list of what is wrong with them is in rewards/t2i_r1/__init__.py."""

from __future__ import annotations

from rollout.records import Prompt, Score

NOTHING_TO_ASK = 1.0
UNASKED_TASKS = ("spatial", "numeracy")


class T2IR1Questions:
    """What GIT is asked, and what a prompt earns that it is not asked about."""

    def nouns(self, prompt: Prompt) -> tuple[str, ...]:
        """The nouns to ask for, each one question; none for a relation or a count."""
        return () if prompt.task_type in UNASKED_TASKS else prompt.attr_nouns or prompt.nouns

    def fixed_score(self, prompt: Prompt) -> Score:
        """The score of a prompt without questions: a constant, which changes no advantage but makes the mean."""
        return Score(0.0 if prompt.task_type in UNASKED_TASKS else NOTHING_TO_ASK)
