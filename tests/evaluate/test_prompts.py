"""Prompts are told apart where they differ, and the shipped template gives the ids that were scored."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from jinja2 import Environment
from transformers import AutoTokenizer

import edgegen
from edgegen.errors import ConfigError
from edgegen.evaluate.prompts import chat_template, load_prompts, with_prompt
from edgegen.modeling.text import prompt_ids
from edgegen.records.data import Example
from edgegen.records.prompts import Prompt, PromptUsed, prompt_in, prompt_mark
from edgegen.records.task import Task
from edgegen.sdk.prompting import read_history, read_task, seeded
from tests.flows.command import run_cli
from tests.tiny_models import make_tiny, sample_texts

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("prompts") / "chat", chat_template=_CHAT)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    texts = sample_texts(10, words=5)
    path.write_text("".join(json.dumps({"prompt": t, "completion": "the lamp"}) + "\n" for t in texts))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.toml"
    path.write_text(
        '[prompts.plain]\n[prompts.same]\ntemplate = "{prompt}"\n[prompts.shown]\nshots = 2\n'
        '[prompts.told]\nsystem = "You say \\"the lamp\\".\\nAlways."\ntemplate = "Now {prompt} 🙂"\n'
    )
    return path


def rows() -> list[Example]:
    return [Example(messages=(("user", f"cat {n}"), ("assistant", "a lamp")), completion=True) for n in range(4)]


@pytest.mark.parametrize("kind", ["chat", "none", "sentencepiece"])
@pytest.mark.parametrize("system", ["", 'Say "yes".\n\\ {{ no }} 🙂'])
def test_the_template_gives_the_ids_that_were_scored(
    kind: str, system: str, chat_model: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = {"chat": chat_model, "none": tiny_llama}.get(kind) or make_tiny(
        "llama", tmp_path / "m", tokenizer="sentencepiece"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = Prompt(system=system, template="It is: {prompt}\n'Answer'", shots=2)
    shown, example = rows()[:2], rows()[3]
    scored = prompt_ids(tokenizer, with_prompt(prompt, shown, example))
    tokenizer.chat_template = chat_template(prompt, shown, tokenizer)
    shipped = tokenizer.apply_chat_template(
        [{"role": "user", "content": "cat 3"}], add_generation_prompt=True, return_dict=False
    )
    assert list(shipped) == scored
    own = [{"role": "system", "content": "Mine"}, {"role": "user", "content": "cat"}]
    text = tokenizer.apply_chat_template(own, tokenize=False, add_generation_prompt=True)
    assert "Mine" in text and "Say" not in text


def test_trying_compares_on_the_same_rows_and_keeps_versions(chat_model: Path, few: Path, prompts: Path) -> None:
    trial = edgegen.try_prompts(str(chat_model), prompts=prompts, data=str(few), max_tokens=6)
    found = {score.name: score for score in trial.scores}
    assert set(found) == {"plain", "same", "shown", "told"} and trial.rows == 8 and trial.judged_by == "answer_log_prob"
    assert found["plain"].version == found["same"].version != found["told"].version
    assert found[trial.best].as_good
    plain, same = (found[name].metrics for name in ("plain", "same"))
    assert [m.model for m in plain] == [m.model for m in same] and found["plain"].as_good == found["same"].as_good
    assert read_history(prompts) == [trial]


def test_from_the_command_line_to_a_template(chat_model: Path, few: Path, prompts: Path, tmp_path: Path) -> None:
    wish = ("--prompts", prompts, "--data", few)
    done = run_cli("prompt", "try", chat_model, *wish, "--max-tokens", "4", "--limit", "6", "--quiet")
    assert done.code == 0 and "judged by answer_log_prob on 4 rows" in done.out and "tell only large" in done.out
    out = tmp_path / "chat_template.jinja"
    for name in ("told", "shown"):
        done = run_cli("prompt", "use", name, "--model", chat_model, "--out", out, *wish)
        assert done.code == 0 and "--replace chat_template.jinja=" in done.out, done.err
        assert out.read_text().endswith(_CHAT)
        used = read_history(prompts)[-1]
        assert isinstance(used, PromptUsed) and prompt_in(out.read_text()) == f"{name} {used.version}"
    done = run_cli("prompt", "history", "--prompts", prompts)
    assert [line.split()[1] for line in done.out.splitlines()] == ["tried", "used", "used"]


def test_the_prompt_that_was_chosen_seeds_the_teacher(chat_model: Path, few: Path, prompts: Path) -> None:
    bare = prompts.with_name("task.toml")
    bare.write_text('schema = 1\nname = "t"\n')
    assert read_task(bare) == Task(schema=1, name="t")
    with pytest.raises(ConfigError, match=r"has no \[task\]"):
        read_task(prompts)
    prompts.write_text(prompts.read_text() + '[task]\nschema = 1\nname = "t"\nformat = "Q: {prompt}\\nA: {answer}"\n')
    assert read_task(prompts).prompt == "" and set(load_prompts(prompts)) == {"plain", "same", "shown", "told"}
    for name in ("shown", "told"):
        used = edgegen.use_prompt(
            name, prompts=prompts, model=str(chat_model), out=prompts.with_suffix(".jinja"), data=str(few)
        )
    task = read_task(prompts)
    assert task.prompt == f"told {used.version}" and task.format == "Q: Now {prompt} 🙂\nA: {answer}"
    assert task.instruction == used.prompt.system and task.shots == Task(schema=1, name="t").shots
    with pytest.raises(ConfigError, match="cannot stand in a task"):
        seeded(task, msgspec.structs.replace(used, prompt=Prompt(template="{prompt} {prompt}")))


def test_a_template_names_its_prompt() -> None:
    for name in ("short", "two words", "a#}b", "ü/%"):
        mark = prompt_mark(name, "0123456789ab")
        assert prompt_in(mark + "{{ x }}") == f"{name} 0123456789ab"
        assert Environment().from_string(mark + "{{ x }}").render(x=1) == "1"
    assert prompt_in("{{ x }}" + mark) == prompt_in("") == ""


def test_wrong_prompts(chat_model: Path, few: Path, prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    for text, says in (
        ("[prompts]\n", "no prompts"),
        ('[prompts.a]\ntemplate = "x"\n', "lacks"),
        ("[prompts.a]\nshots = -1\n", "0 or more"),
        ("[prompts.a]\nsytem = 'x'\n", "unknown key"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_prompts(path)
    path.write_text("[prompts.a]\nshots = 9\n")
    done = run_cli("prompt", "try", chat_model, "--prompts", path, "--data", few, "--quiet")
    assert done.code == 2 and "at least 2" in done.err
    done = run_cli("prompt", "use", "none", "--model", chat_model, "--prompts", prompts)
    assert done.code == 2 and "no prompt 'none'" in done.err
    done = run_cli("prompt", "use", "shown", "--model", chat_model, "--prompts", prompts)
    assert done.code == 2 and "--data" in done.err
    done = run_cli("prompt", "try", chat_model, "--prompts", prompts, "--data", few, "--limit", "0", "--quiet")
    assert done.code == 2 and "--limit must be at least 1" in done.err
    done = run_cli("prompt", "history", "--prompts", tmp_path / "nowhere.toml")
    assert done.code == 2 and "no such file" in done.err
    assert "nothing was tried" in run_cli("prompt", "history", "--prompts", path).out
