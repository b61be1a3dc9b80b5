"""A conversation under construction: its turns, and what has been said that later turns may refer to.

Knows nothing about particular questions; those are in the modules of tasks.
"""

from collections.abc import Callable

from alpha.datagen_chooser import Chooser
from alpha.domain import ASSISTANT, SYSTEM, USER, dialogue

Task = Callable[["Dialogue"], None]
"""Adds at least one question with its answer to a conversation."""

BRIEF, PLAIN, WORKED = "brief", "plain", "worked"


class Dialogue:
    """The turns so far and the facts that they established."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.style = PLAIN  # how long answers are
        self.prefix = ""  # what every answer begins with, when the system asks for it
        self.capitals = False  # whether the system asks for capital letters
        self.assistant_name = ""
        self.assistant_trade = ""
        self.user_name = ""
        self.number: int | None = None  # the answer just given, when it was a whole number
        self.items: list[str] | None = None  # the user's list
        self.favourites: dict[str, str] = {}
        self.age: int | None = None
        self.reviewed = False  # whether the user has asked what was said
        self.turns: list[tuple[str, str]] = []

    def system(self, text: str) -> None:
        """Put an instruction before the conversation."""
        self.turns.append((SYSTEM, text))

    def exchange(self, question: str, full: str, brief: str = "", worked: str = "") -> None:
        """A question and its answer, in the length that the conversation's style asks for."""
        answer = full
        if self.style == BRIEF and brief:
            answer = brief
        elif self.style == WORKED and worked:
            answer = worked
        answer = self.prefix + answer
        self.turns.append((USER, question))
        self.turns.append((ASSISTANT, answer.upper() if self.capitals else answer))
        self.number = None

    def numeric(self, question: str, full: str, answer: int, worked: str = "") -> None:
        """An exchange whose answer is a whole number that the next question may build on."""
        self.exchange(question, full, f"{answer}.", worked)
        self.number = answer

    def questions(self) -> list[str]:
        """What the user has said so far."""
        return [text for role, text in self.turns if role == USER]

    def ask(self, question: str) -> str:
        """A question with one of the small frames that people put around it."""
        chooser = self.chooser
        way = chooser.below(12)
        inner = question[0].lower() + question[1:] if question.startswith(_MOVABLE) else question
        if way == 0:
            return f"Please tell me: {inner}"
        if way == 1:
            return f"I have a question. {question}"
        if way == 2 and self.assistant_name:
            return f"{self.assistant_name}, {inner}"
        if way == 3:
            return f"{chooser.pick(('Okay', 'Right', 'Well', 'So', 'Next'))}, {inner}"
        if way == 4:
            return (
                f"{question} {chooser.pick(('Please.', 'Thanks.', 'I forgot.', 'I need it for school.', 'Quickly!'))}"
            )
        return question

    def text(self) -> str:
        """The conversation with its markers."""
        return dialogue(self.turns)


_MOVABLE = (
    "What",
    "How",
    "Which",
    "Is ",
    "Are ",
    "Can ",
    "Name",
    "Write",
    "Spell",
    "Sort",
    "Put",
    "Add",
    "Tell",
    "Give",
)
