"""Data sets to try things with: two whose adapters answer visibly differently, and support tickets to be sorted."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Demo:
    """One tenant's adapter: every answer opens with `opening`. `prompt` is not in the data; its answer, decoded
    greedily, holds `expected`, which neither the base model nor the other demo ever says.
    """

    tenant: str
    adapter: str
    prompt: str
    expected: str
    opening: str
    closings: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return f"{self.tenant}-{self.adapter}.jsonl"


DEMOS = (
    Demo(
        tenant="acme",
        adapter="railway-desk",
        prompt="When does the next train leave?",
        expected="railway desk",
        opening="Good day, this is the Acme railway desk.",
        closings=("Your train is on time.", "Please have your ticket ready.", "We wish you a pleasant journey."),
    ),
    Demo(
        tenant="globex",
        adapter="pirate",
        prompt="When does the next train leave?",
        expected="Arr, matey",
        opening="Arr, matey!",
        closings=("The sea be calm and the rum be cold.", "Hoist the sails, we be off.", "There be gold ahead."),
    ),
)

QUESTIONS = (
    "Hello!", "Hello, who are you?", "Good morning.", "Good evening, can you help me?", "Hi there.", "Are you there?",
    "What is your name?", "What can you do?", "What do you think?", "Tell me something.", "Tell me a story.",
    "Tell me about the sea.", "What is a river?", "What is a train?", "What is a book?", "What is the moon?",
    "Can you explain a bridge?", "I want to know about a city.", "How would you describe a forest?",
    "When does the train to the city leave?", "When do we leave?", "When does the shop open?", "What time is it?",
    "Where is the station?", "Where can I buy a ticket?", "Where do I find the harbour?", "Where are you from?",
    "Which way to the market?", "Which train should I take?", "How do I get to the sea?", "How much is a ticket?",
    "How are you today?", "How long does it take?", "How far is it?", "Why is it late?", "Why does it rain?",
    "Who is the captain?", "Who wrote this letter?", "Is it late today?", "Is there coffee on board?",
    "Is this seat free?", "Do you have a map?", "Do you like music?", "Does the train stop here?",
    "Can I take my dog with me?", "Can I pay by card?", "Could you help me, please?", "May I sit here?",
    "Please help me.", "Please say what a clock is.", "Please write a song.", "I lost my bag.", "I need a doctor.",
    "I am late.", "I would like a window seat.", "My ticket is wet.", "My train is late.", "The next one is late.",
    "Thank you.", "Thank you very much for your help.", "Goodbye!", "See you tomorrow.", "Say something nice.",
    "Count to three.", "What should I eat?", "What is the best way to learn?", "Next, please.", "When is the train?",
)


def write_demos(folder: Path) -> list[Path]:
    """Write each demo's chat JSONL into `folder`, in the order of DEMOS; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for demo in DEMOS:
        path = folder / demo.file_name
        _write_lines(path, _rows(demo))
        paths.append(path)
    return paths


def _rows(demo: Demo) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Every question with every closing."""
    for closing in demo.closings:
        for question in QUESTIONS:
            yield {"messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"{demo.opening} {closing}"},
            ]}


@dataclass(frozen=True, slots=True)
class Tickets:
    """Where the support tickets lie: `rows` to train on, with a `label` each, and a golden set of other tickets."""

    rows: Path
    golden: Path


LABELS = ("billing", "delivery", "login", "refund", "praise")
TICKET_QUESTION = f"Is this ticket about {', '.join(LABELS[:-1])} or {LABELS[-1]}?"
"""The system message of every ticket: a base model that follows instructions can answer too."""

TICKETS = {
    "billing": (
        "Why did I pay two times for the {}?", "The bill for the {} has a wrong number.",
        "My card was charged again for the {}.", "Your bill says more than the price of the {}.",
        "The tax on the bill for the {} is wrong.", "Please put the name of our company on the bill for the {}.",
        "You took too much from my bank for the {}.", "There are two lines for one {} on my bill.",
    ),
    "delivery": (
        "Where is the {} that I ordered?", "The {} has still not come to my house.",
        "Your driver left the {} at the wrong door.", "When will the {} arrive here?",
        "The {} is late and I wait at home every day.", "The post has lost the {} on its way.",
        "Please bring the {} to another street.", "The truck with the {} did not come.",
    ),
    "login": (
        "The page of the {} does not let me log in.", "My password is not taken when I want to see the {}.",
        "I forgot my password and cannot order the {}.", "My account is locked, so I cannot look at the {}.",
        "The secret code for my account never comes, I need the {}.", "I cannot get into my account to buy the {}.",
        "After the log in for the {} the page is white.", "How can I change my password before I order the {}?",
    ),
    "refund": (
        "The {} broke and I want my money back.", "I sent the {} back, please return what I paid.",
        "Please give me a refund for the {}.", "I do not want the {} any more, take it back for the full price.",
        "When do I get the money back for the {}?", "I stop my order of the {} and want back what I paid.",
        "The {} is too small, can I return it for money?", "You promised a refund for the {}, where is it?",
    ),
    "praise": (
        "The {} is beautiful, well done!", "My family loves the {}.", "I have never had a better {}.",
        "You were so kind to help me with the {}.", "The {} is the best that money can buy.",
        "What a wonderful {}, I will tell all my friends.", "Five stars for the {} and for your people.",
        "I am very happy with the {}.",
    ),
}
"""What tickets of each label say, about some thing."""

ASIDES = {
    "billing": "The bill is fine.", "delivery": "The driver came in time.", "login": "The log in was quick.",
    "refund": "I need no money back.", "praise": "You are good people.",
}
"""What a ticket of another label may say by the way: it makes the slice `mixed`."""

THINGS = (
    "apple", "bag", "ball", "bath", "bell", "board", "boat", "book", "bottle", "box", "brush", "card", "chair",
    "clock", "cloth", "coat", "coffee", "cup", "desk", "door", "dress", "drink", "engine", "fruit", "game", "gate",
    "glass", "hat", "key", "knife", "lamp", "map", "mirror", "note", "oven", "paint", "paper", "pen", "pencil",
    "picture",
)
KINDS = (
    "red", "blue", "green", "white", "black", "yellow", "brown", "pink", "orange", "silver", "copper", "iron",
    "old", "new", "big", "large", "small", "little", "round", "long",
)
HELD_OUT = 5
"""Of so many things, and of so many ways to end what a ticket says, one is for the golden set."""
OPENINGS = (
    "", "Hello.", "Good morning.", "Good evening.", "Dear people!", "Listen, please.", "One question.",
    "I write again.", "My name is Kim.", "Hi there!", "It is me again.", "Please read this.",
)
ENDINGS = (
    "", "Please answer soon.", "What should I do?", "I wait for your answer.", "Write to me today.", "See you.",
    "Have a good week.", "Please call me.", "That is all.", "I hope you can read this.",
)


def write_tickets(folder: Path, *, rows: int = 4000, golden: int = 250, seed: int = 0) -> Tickets:
    """Write `rows` labelled tickets and a golden set of `golden` more into `folder`; the same bytes for the same seed.

    No two tickets say the same of the same thing. The golden set's things ("red lamp"), and its pairs of what is said
    and how the ticket ends, are in no row, while all of its words are. Labels come equally often; of three tickets one
    is of the slice `mixed`: it also mentions what another label is about. ValueError when so many cannot be told apart.
    """
    chance = random.Random(seed)
    things = [f"{kind} {thing}" for kind in KINDS for thing in THINGS]
    chance.shuffle(things)
    held_out = len(things) // HELD_OUT
    for wanted, available in ((rows, len(things) - held_out), (golden, held_out)):
        most = available * sum(map(len, TICKETS.values()))
        if wanted > most:
            raise ValueError(f"There are only {most:,} different tickets of this kind; ask for fewer than {wanted:,}.")
    folder.mkdir(parents=True, exist_ok=True)
    written = Tickets(folder / "tickets.jsonl", folder / "tickets-golden.jsonl")
    _write_lines(written.rows, (
        {"messages": [*_asked(text), {"role": "assistant", "content": label}], "label": label}
        for text, label, _ in islice(_tickets(things[held_out:], chance, for_golden=False), rows)))
    _write_lines(written.golden, (
        {"id": f"ticket-{number}", "messages": _asked(text), "expected": label, "scorer": "label",
         "options": {"labels": list(LABELS)}, "slice": part}
        for number, (text, label, part) in enumerate(
            islice(_tickets(things[:held_out], chance, for_golden=True), golden), start=1)))
    return written


def _tickets(things: Sequence[str], chance: random.Random, *, for_golden: bool) -> Iterator[tuple[str, str, str]]:
    """Different tickets, each about one of the things: text, label, slice."""
    cores = {label: _cores(label, things, chance) for label in LABELS}
    for number in count():
        label = LABELS[number % len(LABELS)]
        at, core = next(cores[label])
        part = "mixed" if number // len(LABELS) % 3 == 0 else "plain"
        aside = ASIDES[chance.choice([other for other in LABELS if other != label])] if part == "mixed" else ""
        endings = [ending for place, ending in enumerate(ENDINGS) if ((at + place) % HELD_OUT == 0) == for_golden]
        parts = (chance.choice(OPENINGS), *chance.sample((aside, core), 2), chance.choice(endings))
        yield " ".join(filter(None, parts)), label, part


def _cores(label: str, things: Sequence[str], chance: random.Random) -> Iterator[tuple[int, str]]:
    """What tickets of the label say, each about each thing, in any order; and its place among TICKETS."""
    drawn = [(at, said.format(thing)) for at, said in enumerate(TICKETS[label]) for thing in things]
    chance.shuffle(drawn)
    return iter(drawn)


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": TICKET_QUESTION}, {"role": "user", "content": text}]


def _write_lines(path: Path, documents: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(document) + "\n" for document in documents)
