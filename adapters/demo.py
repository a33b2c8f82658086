"""Two small data sets whose adapters answer visibly differently, so that it can be seen who serves a chat."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in _rows(demo))
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
