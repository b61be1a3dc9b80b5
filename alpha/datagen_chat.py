"""Conversations for the three chat domains, put together from the tasks of the modules `datagen_chat_*`.

chat: a few plain exchanges. super_chat: longer ones that go back to what was said, some with a persona. nanochat: most
begin with an instruction that shapes every answer (short, worked out, a fixed beginning, capitals).
"""

from alpha.datagen_chat_memory import MEMORY_TASKS, introduction, recalls
from alpha.datagen_chat_numbers import NUMBER_FOLLOW_UPS, NUMBER_TASKS
from alpha.datagen_chat_words import WORD_TASKS, farewell, greeting, story
from alpha.datagen_chooser import Chooser
from alpha.datagen_dialogue import BRIEF, WORKED, Dialogue
from alpha.datagen_words import TRADES, article


def chat(index: int, seed: int) -> str:
    """Conversation number `index` of the domain chat."""
    dialogue = Dialogue(Chooser("chat", index, seed))
    _open(dialogue)
    _tasks(dialogue, dialogue.chooser.between(2, 5), 35)
    _close(dialogue)
    return dialogue.text()


def super_chat(index: int, seed: int) -> str:
    """Conversation number `index` of the domain super_chat."""
    dialogue = Dialogue(Chooser("super_chat", index, seed))
    if dialogue.chooser.chance(40):
        _persona(dialogue)
    _open(dialogue)
    _tasks(dialogue, dialogue.chooser.between(4, 8), 55)
    _close(dialogue)
    return dialogue.text()


def nanochat(index: int, seed: int) -> str:
    """Conversation number `index` of the domain nanochat."""
    dialogue = Dialogue(Chooser("nanochat", index, seed))
    if dialogue.chooser.chance(75):
        _instruction(dialogue)
    else:
        dialogue.style = WORKED if dialogue.chooser.chance(50) else dialogue.style
    _open(dialogue)
    _tasks(dialogue, dialogue.chooser.between(4, 10), 45, with_stories=True)
    _close(dialogue)
    return dialogue.text()


def _open(dialogue: Dialogue) -> None:
    if dialogue.chooser.chance(35):
        greeting(dialogue)
    if dialogue.chooser.chance(25):
        introduction(dialogue)


def _close(dialogue: Dialogue) -> None:
    if dialogue.chooser.chance(30):
        farewell(dialogue)


def _tasks(dialogue: Dialogue, count: int, follow_up_percent: int, with_stories: bool = False) -> None:
    chooser = dialogue.chooser
    for _ in range(count):
        following = recalls(dialogue)
        if following and chooser.chance(follow_up_percent):
            chooser.pick(following)(dialogue)
        elif with_stories and chooser.chance(8):
            story(dialogue)
        else:
            chooser.pick(chooser.pick((NUMBER_TASKS, NUMBER_TASKS, WORD_TASKS, WORD_TASKS, MEMORY_TASKS)))(dialogue)
        if dialogue.number is not None and chooser.chance(25):
            chooser.pick(NUMBER_FOLLOW_UPS)(dialogue)


def _persona(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    name, trade, place = chooser.first_name(), chooser.pick(TRADES), chooser.place()
    dialogue.assistant_name, dialogue.assistant_trade = name, f"{trade} in {place}"
    dialogue.system(
        chooser.pick(
            (
                f"You are {name}, {article(trade)} in {place}.",
                f"Your name is {name}. You work as {article(trade)} in {place}.",
                f"Answer as {name}, {article(trade)} in {place}.",
            )
        )
    )


def _instruction(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    way = chooser.below(6)
    if way == 0:
        dialogue.style = BRIEF
        instruction = chooser.pick(
            (
                "Answer in as few words as possible.",
                "Be brief.",
                "Give short answers.",
                "Only the answer, nothing else.",
            )
        )
        dialogue.system(instruction)
    elif way in (1, 2):
        dialogue.style = WORKED
        instruction = chooser.pick(("Show your work.", "Explain how you find the answer.", "Work step by step."))
        dialogue.system(instruction)
    elif way == 3:
        word = chooser.pick(
            ("Certainly.", "Of course.", "Well,", "Good question.", "Let me see.", "Yes, friend.", "As you wish.")
        )
        dialogue.prefix = f"{word} "
        dialogue.system(f'Begin every answer with "{word}"')
    elif way == 4:
        dialogue.capitals = True
        dialogue.system(chooser.pick(("Answer in capital letters.", "Write your answers in capitals.")))
    else:
        _persona(dialogue)
