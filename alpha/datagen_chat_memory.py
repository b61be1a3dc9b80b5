"""Things that the user tells and asks for later (a name, a favourite, an age, a list), for the chat domains."""

from alpha.datagen_dialogue import Dialogue, Task
from alpha.datagen_words import ANIMALS, COLOURS, FOODS, WEEKDAYS, capitalized, listed


def introduction(dialogue: Dialogue) -> None:
    """The user tells a name."""
    chooser = dialogue.chooser
    name = dialogue.user_name = chooser.first_name()
    question = chooser.pick(
        (
            f"My name is {name}.",
            f"I am {name}.",
            f"Hi, I'm {name}.",
            f"Please call me {name}.",
            f"You can call me {name}.",
        )
    )
    answer = chooser.pick(
        (f"Nice to meet you, {name}.", f"Hello, {name}. How can I help?", f"Welcome, {name}!", f"A pleasure, {name}.")
    )
    dialogue.exchange(question, answer, f"Hello, {name}.")


def recall_name(dialogue: Dialogue) -> None:
    name = dialogue.user_name
    question = dialogue.chooser.pick(("What is my name?", "Do you remember my name?", "Who am I?"))
    if name:
        dialogue.exchange(question, f"Your name is {name}.", f"{name}.")
    else:
        dialogue.exchange(question, "You have not told me your name yet.", "I do not know.")


def tell_favourite(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    kind, options = chooser.pick((("colour", COLOURS), ("animal", ANIMALS), ("food", FOODS), ("day", WEEKDAYS)))
    value = dialogue.favourites[kind] = chooser.pick(options)
    with_article = f"the {value}" if kind == "animal" else value
    dialogue.exchange(
        f"My favourite {kind} is {with_article}.",
        chooser.pick((f"I will remember that: {value}.", f"{capitalized(with_article)} is a good choice.")),
        f"Noted: {value}.",
    )


def recall_favourite(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    kind = chooser.pick(("colour", "animal", "food", "day"))
    if dialogue.favourites and chooser.chance(85):
        kind = chooser.pick(list(dialogue.favourites))
    value = dialogue.favourites.get(kind)
    with_article = f"the {value}" if kind == "animal" else value
    if value:
        dialogue.exchange(f"What is my favourite {kind}?", f"Your favourite {kind} is {with_article}.", f"{value}.")
    else:
        dialogue.exchange(f"What is my favourite {kind}?", "You have not told me that.", "I do not know.")


def tell_age(dialogue: Dialogue) -> None:
    age = dialogue.age = dialogue.chooser.between(6, 90)
    dialogue.exchange(f"I am {age} years old.", f"Thank you. You are {age}.", "Noted.")


def recall_age(dialogue: Dialogue) -> None:
    age, years = dialogue.age, dialogue.chooser.between(2, 30)
    assert age is not None
    if dialogue.chooser.chance(60):
        dialogue.numeric(
            f"How old will I be in {years} years?",
            f"In {years} years you will be {age + years}.",
            age + years,
            f"You are {age}, and {age} + {years} = {age + years}.",
        )
    else:
        dialogue.numeric("How old did I say I am?", f"You said that you are {age}.", age)


def make_list(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    items = dialogue.items = chooser.sample(FOODS, chooser.between(2, 5))
    question = chooser.pick(("Put {} on my list.", "My shopping list: {}.", "Please remember these: {}.", "I need {}."))
    dialogue.exchange(question.format(listed(items)), f"Your list has {len(items)} things: {listed(items)}.", "Done.")


def change_list(dialogue: Dialogue) -> None:
    chooser, items = dialogue.chooser, dialogue.items
    assert items is not None
    if items and chooser.chance(40):
        removed = chooser.pick(items)
        items.remove(removed)
        question = chooser.pick(
            (f"Take {removed} off the list.", f"I already have {removed}.", f"Remove {removed}, please.")
        )
        left = f"That leaves {listed(items)}." if items else "Your list is empty now."
        dialogue.exchange(question, f"I removed {removed}. {left}", "Done.")
    else:
        added = chooser.pick([food for food in FOODS if food not in items])
        items.append(added)
        question = chooser.pick((f"Add {added}.", f"Also {added}, please.", f"I need {added} too.", f"And {added}."))
        dialogue.exchange(question, f"I added {added}. Now it is {listed(items)}.", "Done.")


def recall_list(dialogue: Dialogue) -> None:
    chooser, items = dialogue.chooser, dialogue.items
    assert items is not None
    way = chooser.below(3)
    if way == 0:
        things = "thing" if len(items) == 1 else "things"
        full = f"There {'is' if len(items) == 1 else 'are'} {len(items)} {things} on your list."
        dialogue.numeric("How many things are on my list?", full, len(items))
    elif way == 1:
        wanted = chooser.pick([*items, chooser.pick(FOODS)])
        answer = "Yes" if wanted in items else "No"
        full = f"{answer}, {wanted} {'is' if wanted in items else 'is not'} on your list."
        dialogue.exchange(f"Is there {wanted} on my list?", full, f"{answer}.")
    else:
        question = chooser.pick(("What is on my list?", "Read me my list.", "What do I have to buy?"))
        full = f"Your list: {listed(items)}." if items else "Your list is empty."
        dialogue.exchange(question, full, capitalized(listed(items)) + "." if items else "Nothing.")


def recall_question(dialogue: Dialogue) -> None:
    """What the user said first, or last."""
    chooser, questions = dialogue.chooser, dialogue.questions()
    first = chooser.chance(50)
    question = chooser.pick(
        ("What did I say first?", "What was my first message?", "How did I begin?")
        if first
        else ("What did I say just before this?", "What was my last message?", "Repeat what I said last.")
    )
    said = questions[0] if first else questions[-1]
    dialogue.exchange(question, f'You said: "{said}"', f'"{said}"')
    dialogue.reviewed = True


def recalls(dialogue: Dialogue) -> list[Task]:
    """The tasks that refer to what was said so far."""
    tasks: list[Task] = []
    if dialogue.items is not None:
        tasks += [change_list, change_list, recall_list, recall_list]
    if dialogue.user_name:
        tasks.append(recall_name)
    if dialogue.favourites:
        tasks.append(recall_favourite)
    if dialogue.age is not None:
        tasks.append(recall_age)
    if len(dialogue.questions()) > 1 and not dialogue.reviewed:
        tasks.append(recall_question)
    return tasks


MEMORY_TASKS: tuple[Task, ...] = (introduction, tell_favourite, tell_age, make_list, recall_name)
