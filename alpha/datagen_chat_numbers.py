"""Questions about numbers, times and units, with computed answers, for the chat domains."""

from math import isqrt

from alpha.datagen_dialogue import Dialogue, Task
from alpha.datagen_words import FOODS, MONTHS, OBJECTS, WEEKDAYS, in_words, listed, roman

_COUNTABLE = (
    *(food for food in FOODS if food.endswith("s") and food != "asparagus"),
    "coins", "stamps", "pencils", "buttons", "marbles", "candles", "books", "cards", "tickets", "shells", "bricks",
)  # fmt: skip


def _operands(dialogue: Dialogue) -> tuple[int, int]:
    """Two numbers of one of several sizes."""
    limit = dialogue.chooser.pick((10, 20, 100, 100, 1000))
    return dialogue.chooser.between(2, limit), dialogue.chooser.between(2, limit)


def _tens_and_units(first: int, second: int) -> str:
    tens, units = second - second % 10, second % 10
    if not tens or not units:
        return ""
    middle = first + tens
    return f"{first} + {tens} = {middle}, and {middle} + {units} = {first + second}."


def addition(dialogue: Dialogue) -> None:
    first, second = _operands(dialogue)
    total = first + second
    question = dialogue.chooser.pick(
        (
            f"What is {first} + {second}?",
            f"What is {first} plus {second}?",
            f"Add {first} and {second}.",
            f"How much is {first} and {second}?",
            f"{first} + {second} = ?",
            f"What is the sum of {first} and {second}?",
        )
    )
    dialogue.numeric(dialogue.ask(question), f"{first} + {second} = {total}.", total, _tens_and_units(first, second))


def subtraction(dialogue: Dialogue) -> None:
    second, first = sorted(_operands(dialogue))
    difference = first - second
    question = dialogue.chooser.pick(
        (
            f"What is {first} - {second}?",
            f"What is {first} minus {second}?",
            f"How much is {first} less {second}?",
            f"What is left when I take {second} from {first}?",
            f"{first} - {second} = ?",
        )
    )
    tens, units = second - second % 10, second % 10
    worked = (
        f"{first} - {tens} = {first - tens}, and {first - tens} - {units} = {difference}." if tens and units else ""
    )
    dialogue.numeric(dialogue.ask(question), f"{first} - {second} = {difference}.", difference, worked)


def multiplication(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    first, second = chooser.between(2, chooser.pick((12, 12, 99))), chooser.between(2, chooser.pick((10, 12, 50)))
    result = first * second
    question = chooser.pick(
        (
            f"What is {first} times {second}?",
            f"What is {first} x {second}?",
            f"How much is {first} times {second}?",
            f"What is the product of {first} and {second}?",
            f"{first} x {second} = ?",
        )
    )
    tens, units = first - first % 10, first % 10
    worked = ""
    if tens and units:
        worked = (
            f"{tens} x {second} = {tens * second} and {units} x {second} = {units * second}. "
            f"{tens * second} + {units * second} = {result}."
        )
    dialogue.numeric(dialogue.ask(question), f"{first} x {second} = {result}.", result, worked)


def division(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    divisor, quotient = chooser.between(2, 12), chooser.between(2, 30)
    rest = chooser.below(divisor) if chooser.chance(50) else 0
    number = divisor * quotient + rest
    question = chooser.pick((f"What is {number} divided by {divisor}?", f"Divide {number} by {divisor}."))
    full = f"{number} divided by {divisor} is {quotient}" + (f", remainder {rest}." if rest else ".")
    worked = f"{divisor} x {quotient} = {divisor * quotient}, and {number} - {divisor * quotient} = {rest}. So {full}"
    brief = f"{quotient}, remainder {rest}." if rest else f"{quotient}."
    dialogue.exchange(dialogue.ask(question), full, brief, worked)
    if not rest:
        dialogue.number = quotient


def story_sum(dialogue: Dialogue) -> None:
    """A word problem of two to four steps about one person's things."""
    chooser = dialogue.chooser
    name = chooser.first_name()
    thing = chooser.pick(_COUNTABLE)
    start = count = chooser.between(3, 40)
    steps, working = [], []
    for _ in range(chooser.between(1, 3)):
        before, amount = count, chooser.between(2, 20)
        way = chooser.below(4)
        if way == 0 and count > amount:
            steps.append(f"gives away {amount}")
            count -= amount
            working.append(f"{before} - {amount} = {count}")
        elif way == 1 and count % 2 == 0:
            steps.append("loses half of them")
            count //= 2
            working.append(f"{before} / 2 = {count}")
        elif way == 2 and amount < 4:
            steps.append(f"then has {amount} times as many")
            count *= amount
            working.append(f"{before} x {amount} = {count}")
        else:
            steps.append(f"{chooser.pick(('buys', 'finds', 'gets'))} {amount} more")
            count += amount
            working.append(f"{before} + {amount} = {count}")
    question = f"{name} has {start} {thing}, {listed(steps)}. How many {thing} does {name} have now?"
    dialogue.numeric(
        question, f"{name} has {count} {thing} now.", count, f"{', '.join(working)}. {name} has {count} {thing} now."
    )


def build_on_number(dialogue: Dialogue) -> None:
    """A follow-up that works on the last answer."""
    number, chooser = dialogue.number, dialogue.chooser
    assert number is not None
    amount = chooser.between(2, 20)
    ways = [
        (f"Add {amount} to that.", f"{number} + {amount}", number + amount),
        (f"And {amount} more?", f"{number} + {amount}", number + amount),
        ("Now double it.", f"2 x {number}", 2 * number),
        (f"What is that times {amount}?", f"{number} x {amount}", number * amount),
        ("And ten times as much?", f"10 x {number}", 10 * number),
    ]
    if number >= amount:
        ways.append((f"Now take away {amount}.", f"{number} - {amount}", number - amount))
        ways.append((f"Subtract {amount} from your answer.", f"{number} - {amount}", number - amount))
    if number % 2 == 0:
        ways.append(("And half of that?", f"{number} / 2", number // 2))
    if number > 100_000:
        ways = ways[:2]
    question, working, result = chooser.pick(ways)
    dialogue.numeric(question, f"{working} = {result}.", result)


def check_number(dialogue: Dialogue) -> None:
    """A follow-up about a property of the last answer."""
    number, chooser = dialogue.number, dialogue.chooser
    assert number is not None
    if chooser.chance(50):
        kind = "odd" if number % 2 else "even"
        asked = chooser.pick(("odd", "even"))
        answer = "Yes" if asked == kind else "No"
        dialogue.exchange(f"Is that an {asked} number?", f"{answer}, {number} is {kind}.", f"{answer}.")
    else:
        limit = chooser.between(max(number - 60, 0), number + 60)
        answer = "Yes" if number > limit else "No"
        verb = "more than" if number > limit else "less than" if number < limit else "equal to"
        dialogue.exchange(f"Is that more than {limit}?", f"{answer}, {number} is {verb} {limit}.", f"{answer}.")
    dialogue.number = number


_CONVERSIONS = (  # one of the first, several of it, the smaller unit, how many
    ("kilometre", "kilometres", "metres", 1000), ("metre", "metres", "centimetres", 100),
    ("centimetre", "centimetres", "millimetres", 10), ("kilogram", "kilograms", "grams", 1000),
    ("tonne", "tonnes", "kilograms", 1000), ("litre", "litres", "millilitres", 1000), ("hour", "hours", "minutes", 60),
    ("minute", "minutes", "seconds", 60), ("day", "days", "hours", 24), ("week", "weeks", "days", 7),
    ("foot", "feet", "inches", 12), ("yard", "yards", "feet", 3), ("pound", "pounds", "ounces", 16),
    ("gallon", "gallons", "pints", 8), ("year", "years", "months", 12), ("century", "centuries", "years", 100),
    ("decade", "decades", "years", 10), ("hectare", "hectares", "square metres", 10_000),
)  # fmt: skip


def conversion(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    one, large, small, factor = chooser.pick(_CONVERSIONS)
    count = chooser.between(2, 60)
    total = count * factor
    if chooser.chance(65):
        result = total
        question = chooser.pick((f"How many {small} are {count} {large}?", f"Convert {count} {large} to {small}."))
        working = f"1 {one} is {factor} {small}, and {count} x {factor} = {total}. "
        full = f"{count} {large} are {total} {small}."
    else:
        result = count
        question = chooser.pick((f"How many {large} are {total} {small}?", f"Convert {total} {small} to {large}."))
        working = f"1 {one} is {factor} {small}, and {total} / {factor} = {count}. "
        full = f"{total} {small} are {count} {large}."
    dialogue.numeric(dialogue.ask(question), full, result, working + full)


def temperature(dialogue: Dialogue) -> None:
    celsius = dialogue.chooser.between(-8, 24) * 5
    fahrenheit = celsius * 9 // 5 + 32
    scaled = celsius * 9 // 5
    if dialogue.chooser.chance(50):
        question, answer = f"What is {celsius} degrees Celsius in Fahrenheit?", fahrenheit
        full = f"{celsius} °C is {fahrenheit} °F."
        working = f"{celsius} x 9 / 5 = {scaled}, and {scaled} + 32 = {fahrenheit}. "
    else:
        question, answer = f"What is {fahrenheit} degrees Fahrenheit in Celsius?", celsius
        full = f"{fahrenheit} °F is {celsius} °C."
        working = f"{fahrenheit} - 32 = {scaled}, and {scaled} x 5 / 9 = {celsius}. "
    dialogue.exchange(dialogue.ask(question), full, f"{answer}.", working + full)


def comparison(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    limit = chooser.pick((20, 100, 1000, 10_000))
    numbers = [chooser.between(1, limit) for _ in range(chooser.between(2, 5))]
    if len(set(numbers)) < len(numbers):
        numbers = [number + position * limit for position, number in enumerate(numbers)]
        numbers = chooser.sample(numbers, len(numbers))
    text = listed([str(number) for number in numbers])
    way = chooser.below(3)
    if way == 0:
        word = "larger" if len(numbers) == 2 else "the largest"
        dialogue.numeric(
            f"Which is {word}, {text.replace(' and ', ' or ')}?", f"{max(numbers)} is {word}.", max(numbers)
        )
    elif way == 1:
        word = "smaller" if len(numbers) == 2 else "the smallest"
        dialogue.numeric(
            f"Which is {word}, {text.replace(' and ', ' or ')}?", f"{min(numbers)} is {word}.", min(numbers)
        )
    else:
        ordered = listed([str(number) for number in sorted(numbers)])
        dialogue.exchange(f"Put {text} in order.", f"In order: {ordered}.", f"{ordered}.")


def sequence(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    start, step, length = chooser.between(1, 30), chooser.between(2, 15), chooser.between(4, 6)
    way = chooser.below(4)
    if way == 0:
        values, rule = [start + step * place for place in range(length + 1)], f"each number is {step} more"
    elif way == 1:
        ratio = chooser.between(2, 3)
        values, rule = [start * ratio**place for place in range(length + 1)], f"each number is {ratio} times the last"
    elif way == 2:
        base = chooser.between(1, 9)
        values, rule = [(base + place) ** 2 for place in range(length + 1)], "these are squares"
    else:
        values = [start, start + step]
        while len(values) <= length:
            values.append(values[-1] + values[-2])
        rule = "each number is the sum of the two before it"
    shown = ", ".join(map(str, values[:-1]))
    dialogue.numeric(
        f"What comes next: {shown}?",
        f"{values[-1]} comes next: {rule}.",
        values[-1],
        f"The rule: {rule}. So {values[-1]}.",
    )


def is_prime(number: int) -> bool:
    """Whether a natural number is prime, by trial division."""
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def primes(dialogue: Dialogue) -> None:
    number = dialogue.chooser.between(2, 200)
    if is_prime(number):
        full, brief = f"Yes, {number} is prime.", "Yes."
        tried = listed([str(divisor) for divisor in range(2, isqrt(number) + 1) if is_prime(divisor)])
        worked = f"Yes, {number} is prime: it has no divisor among {tried}." if tried else ""
    else:
        divisor = next(divisor for divisor in range(2, number) if number % divisor == 0)
        full, brief = f"No, {number} = {divisor} x {number // divisor}.", "No."
        worked = f"No, {number} can be divided by {divisor}: {number} = {divisor} x {number // divisor}."
    dialogue.exchange(dialogue.ask(f"Is {number} a prime number?"), full, brief, worked)


def percentage(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    percent, number = chooser.pick((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90)), 20 * chooser.between(1, 60)
    result = percent * number // 100
    dialogue.numeric(
        dialogue.ask(f"What is {percent}% of {number}?"),
        f"{percent}% of {number} is {result}.",
        result,
        f"1% of {number} is {number / 100:g}, and {percent} x {number / 100:g} = {result}.",
    )


def money_change(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    note, price = chooser.pick((5, 10, 20, 50, 100)), 0
    while not 0 < price < note * 100:
        price = chooser.between(1, note * 20) * 5
    change = note * 100 - price
    thing = chooser.pick(OBJECTS)
    dialogue.exchange(
        f"The {thing} costs {price // 100}.{price % 100:02d}. I pay with {note}. How much change do I get?",
        f"You get {change // 100}.{change % 100:02d} back.",
        f"{change // 100}.{change % 100:02d}.",
        f"{note}.00 - {price // 100}.{price % 100:02d} = {change // 100}.{change % 100:02d}.",
    )


def clock(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    minutes, later = chooser.below(24 * 60), chooser.between(1, 36) * 5
    if chooser.chance(30):
        hours = chooser.between(2, 12)
        later, duration = 60 * hours, f"{hours} hours"
    else:
        duration = f"{later} minutes"
    now, then = (f"{value // 60:02d}:{value % 60:02d}" for value in (minutes, (minutes + later) % (24 * 60)))
    question = f"It is {now}. What time will it be in {duration}?"
    dialogue.exchange(question, f"It will be {then}.", f"{then}.")


def weekday(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    today, days = chooser.below(7), chooser.between(2, 40)
    result = WEEKDAYS[(today + days) % 7]
    weeks, rest = divmod(days, 7)
    worked = f"{days} days are {weeks} weeks and {rest} days, and {rest} days after {WEEKDAYS[today]} it is {result}."
    if chooser.chance(70):
        question = f"Today is {WEEKDAYS[today]}. Which day is it in {days} days?"
        dialogue.exchange(question, f"In {days} days it is {result}.", f"{result}.", worked)
    else:
        month = chooser.below(12)
        following = MONTHS[(month + 1) % 12]
        dialogue.exchange(
            dialogue.ask(f"Which month comes after {MONTHS[month]}?"),
            f"{following} comes after {MONTHS[month]}.",
            f"{following}.",
        )


def rectangle(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    width, height = chooser.between(2, 40), chooser.between(2, 40)
    if chooser.chance(50):
        question, result = "What is its area?", width * height
        worked = f"Area is width times height: {width} x {height} = {result} square metres."
        full = f"Its area is {result} square metres."
    else:
        question, result = "How long is its edge all around?", 2 * (width + height)
        worked = f"{width} + {height} = {width + height}, and twice that is {result} metres."
        full = f"Its edge is {result} metres long."
    thing = chooser.pick(("garden", "field", "room", "yard", "carpet", "table", "park"))
    dialogue.numeric(f"A {thing} is {width} metres by {height} metres. {question}", full, result, worked)


def average(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    count = chooser.between(2, 5)
    numbers = [chooser.between(1, 50) for _ in range(count - 1)]
    numbers.append(chooser.between(1, 10) * count + -sum(numbers) % count)
    total = sum(numbers)
    text = listed([str(number) for number in numbers])
    dialogue.numeric(
        dialogue.ask(f"What is the average of {text}?"),
        f"The average is {total // count}.",
        total // count,
        f"The sum is {total}, and {total} / {count} = {total // count}.",
    )


def numerals(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    number = chooser.between(1, chooser.pick((20, 100, 3000)))
    question, answer = chooser.pick(
        (
            (f"Write {number} in words.", in_words(number)),
            (f"Which number is {in_words(number)}?", str(number)),
            (f"Write {number} as a Roman numeral.", roman(number)),
            (f"What is {roman(number)} as a number?", str(number)),
        )
    )
    dialogue.exchange(dialogue.ask(question), f"It is {answer}.", f"{answer}.")


NUMBER_TASKS: tuple[Task, ...] = (
    addition, addition, subtraction, multiplication, division, story_sum, story_sum, conversion, conversion,
    temperature, comparison, sequence, primes, percentage, money_change, clock, weekday, rectangle, average, numerals,
)  # fmt: skip
NUMBER_FOLLOW_UPS: tuple[Task, ...] = (build_on_number, build_on_number, check_number)
