"""Data with the real libraries: what Hugging Face saves is read, and a real tokenizer learns the answers alone."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import adapters

ROOT = Path(adapters.__file__).parents[1]
MAKE = """
import sys
from pathlib import Path
import datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
folder = Path(sys.argv[1])
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(["When does the next train leave?"], trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<|end|>", "<|user|>", "<|assistant|>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
template = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content or (message.tool_calls[0].function.arguments | tojson) }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", chat_template=template)
tokenizer.save_pretrained(folder / "base")
rows = datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
rows.save_to_disk(folder / "saved", num_shards=3)
datasets.DatasetDict(train=rows, test=rows.select(range(2))).save_to_disk(folder / "splits")
rows.to_parquet(folder / "rows.parquet")
"""

RUN = """
import json, sys
from pathlib import Path
from typer.testing import CliRunner
from adapters.commands.data import app
from adapters.data import ChatTokenizer, IGNORED, load_tokenizer
from adapters.data.tokens import tokenise
folder = Path(sys.argv[1])
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    result = CliRunner().invoke(app, arguments)
    results[name] = [result.exit_code, result.output]
tokenizer = load_tokenizer(str(folder / "base"))
tokens = tokenise(folder / "lines" / "train.jsonl", ChatTokenizer(tokenizer), 256, folder / "tokens")
results["learned"] = [0, json.dumps([tokenizer.decode([label for label in row.labels if label != IGNORED])
                                     for row in (tokens[at] for at in range(len(tokens)))])]
print(json.dumps(results))
"""

ANSWERS = ["At noon, \u2764 from track 3.", "In an hour \N{TRAIN}\N{ZERO WIDTH JOINER}!", "Ich weiß es nicht…", "未定"]
COMMANDS = {
    "lines": ["prepare", "rows.jsonl", "--out", "lines"],
    "saved": ["prepare", "saved", "--out", "of-saved"],
    "parquet": ["prepare", "rows.parquet", "--out", "of-parquet"],
    "subset": ["prepare", "splits", "--subset", "test", "--out", "of-splits"],
    "preview": ["preview", "rows.jsonl", "--base-model", "base"],
    "masked": ["preview", "rows.jsonl", "--base-model", "base", "--max-length", "8"],
    "check": ["check", "rows.jsonl", "--base-model", "base", "--max-length", "64"],
    "too short": ["check", "rows.jsonl", "--base-model", "base", "--max-length", "8"],
    "refused": ["check", "system.jsonl", "--base-model", "base"],
}

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Desk:
    """A folder with what the commands wrote, and by name how each ended and what it said."""

    folder: Path
    results: Mapping[str, tuple[int, str]]

    def prepared(self, name: str) -> str:
        """The rows to train on in that folder."""
        return (self.folder / name / "train.jsonl").read_text()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """All commands are run in one process: it takes the libraries longer to load than all of them to run."""
    python = os.environ.get("SWITCHYARD_ENGINE_PYTHON")
    if not python:
        pytest.skip("SWITCHYARD_ENGINE_PYTHON is not set: it names a Python that has the `train` extra")
    folder = tmp_path_factory.mktemp("desk")
    call = {"function": {"name": "find", "arguments": '{"what": "track"}'}}
    chats = [[{"role": "user", "content": f"When does train {at} leave?"}, {"role": "assistant", "content": answer}]
             for at, answer in enumerate(ANSWERS)]
    calls = [{"role": "user", "content": "Which track?"}, {"role": "assistant", "tool_calls": [call]}]
    system = [{"role": "system", "content": "Be brief."}, *chats[0]]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in [*chats, calls]))
    (folder / "system.jsonl").write_text(json.dumps({"messages": system}) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for script, *arguments in ((MAKE,), (RUN, json.dumps(COMMANDS))):
        done = subprocess.run([python, "-c", script, str(folder), *arguments], cwd=folder, env=environment,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return Desk(folder, json.loads(done.stdout.splitlines()[-1]))


def test_what_hugging_face_saves_is_prepared_like_the_lines_it_came_from(desk: Desk) -> None:
    lines = desk.prepared("lines")
    assert len(lines.splitlines()) == len(ANSWERS) + 1
    assert desk.results["saved"][0] == 0, desk.results["saved"][1]
    assert desk.prepared("of-saved") == lines
    assert desk.prepared("of-parquet") == lines
    assert desk.prepared("of-splits") == "".join(lines.splitlines(keepends=True)[:2])


def test_exactly_the_answers_are_learned(desk: Desk) -> None:
    expected = [f"{answer}<|end|>" for answer in [*ANSWERS, '{"what": "track"}']]
    assert json.loads(desk.results["learned"][1]) == expected


def test_the_preview_marks_what_is_learned_and_refuses_what_is_not(desk: Desk) -> None:
    assert f"<|user|>When does train 0 leave?<|end|><|assistant|>⟦{ANSWERS[0]}<|end|>⟧" in desk.results["preview"][1]
    code, output = desk.results["masked"]
    assert (code, "All labels of these rows are masked" in output) == (1, True)


def test_the_check_counts_tokens_and_refuses_what_cannot_be_learned(desk: Desk) -> None:
    code, output = desk.results["check"]
    assert (code, "tokens: 5 rows" in output) == (0, True)
    code, output = desk.results["too short"]
    assert (code, "are masked: no answer begins within max_length = 8 tokens" in output) == (1, True)
    code, output = desk.results["refused"]
    assert (code, "line 1: messages: the base model's chat template refused them: unknown role system" in output) == (
        1, True)
