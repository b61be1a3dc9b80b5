"""How many questions a chat model answers rightly, in conversations that it has not seen.

    python perf/answers.py --checkpoint=RUN [--domain=chat] [--seed=1] [--conversations=200] [--data=chat.jsonl]

The conversations are those of `alpha datagen` by another seed. Each question is asked after what was said before it,
with the right answers, and the model answers with its likeliest tokens. An answer is right when it is the one that was
made by rule, to the letter; exchanges that have several right answers are left out. With `--data`, the conversations
that were trained on, questions that none of them has in the same words are counted apart, as "new". Prints a line of
JSON.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha import backends, datagen_chat
from alpha.conversation import Chat
from alpha.datagen_grammar import Chooser
from alpha.engine import Engine, Generation, Request
from alpha.errors import AlphaError
from alpha.model_loading import load_model
from alpha.sampling import SamplingOptions

SEVERAL = frozenset(("greeting", "introduction", "farewell", "tell_favourite", "make_list", "tell_story"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the right answers of a chat model.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--domain", default="chat", choices=datagen_chat.CONVERSATIONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--wrong", type=int, default=0, help="print this many wrong answers, on standard error")
    arguments = parser.parse_args()
    if arguments.conversations < 1:
        parser.error("--conversations must be at least 1")
    loaded = load_model(arguments.checkpoint, backends.create(arguments.backend, -1, "f32"))
    chat = Chat(loaded, loaded.context)
    seen = set()
    if arguments.data:
        for line in arguments.data.read_text().splitlines():
            seen |= {each["content"] for each in json.loads(line)["messages"] if each["role"] == "user"}
    engine = Engine(loaded.model, max_sequences=64)
    asked: list[tuple[str, str, str, Generation]] = []
    asks = []
    for number in range(arguments.conversations):
        chooser = Chooser(arguments.domain, number, arguments.seed)
        said = datagen_chat.CONVERSATIONS[arguments.domain](chooser)
        turns = [{"role": role.strip("<|>"), "content": text} for role, text in said.turns]
        first = len(turns) - 2 * len(said.tasks)  # an instruction of the system may stand before
        chat.system = turns[0]["content"] if first else ""
        for place, task in enumerate(said.tasks):
            question = first + 2 * place
            if task in SEVERAL:
                continue
            chat.content = tuple(turns[first:question])
            chat.said(turns[question]["content"])
            ask = chat.asked()
            asks.append(ask)
            request = Request(ask.ids, chat.room(ask), SamplingOptions(temperature=0.0), stop_ids=ask.stop_ids)
            asked.append((task, turns[question]["content"], turns[question + 1]["content"], engine.submit(request)))
    while engine.is_busy:
        engine.step()
    counts: Counter[str] = Counter()
    for ask, (task, question, wanted, generation) in zip(asks, asked, strict=True):
        said_text = ask.text(generation.ids)
        is_right = said_text.strip() == wanted
        for group in (task, "all", *(["new"] if seen and question not in seen else [])):
            counts[group] += 1
            counts[f"{group} right"] += is_right
        counts["ended"] += generation.reason == "stop"
        if not is_right and arguments.wrong:
            arguments.wrong -= 1
            print(f"{question} | {said_text} | {wanted}", file=sys.stderr)
    rates = {
        group: f"{counts[f'{group} right']}/{counts[group]}" for group in sorted(counts) if f"{group} right" in counts
    }
    print(json.dumps({"right": round(counts["all right"] / counts["all"], 4), "ended": counts["ended"], **rates}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AlphaError as error:
        sys.exit(f"answers.py: error: {error}")
