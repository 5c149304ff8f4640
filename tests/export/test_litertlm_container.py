"""What stands around the model in a `.litertlm` file; the file itself is made and run in `tests/flows`."""

from pathlib import Path
from typing import Any

import jinja2
import msgspec
import pytest
from jinja2 import ext
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from edgegen.common.codec import load_json, save_json
from edgegen.errors import DeviceError, UnsupportedError
from edgegen.export.litert.container import add_container, engine_metadata, engine_template, read_sections
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Settings
from edgegen.runtime.text import Text
from tests.tiny_models import make_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "leading space": "\n  \n {% for m in messages %} {{ m.content }} {% endfor %}",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
    "parts or text": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content or [] %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    "no content": "{% for m in messages %}{{ 'none' if m.content is none else m.content }}{% endfor %}",
    "other keys": "{% for m in messages %}{{ m.name }}{{ m.role }}{% endfor %}",
}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief.", "name": "s"},
    {"role": "user", "content": 'hello\n "you" \\ é', "name": "u"},
    {"role": "assistant", "content": None},
]


def in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """As the engine gives turns to a template."""
    content = turn["content"]
    return {**turn, "content": content if content is None else [{"type": "text", "text": content}]}


def render(template: str, **given: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
    return environment.from_string(template).render(add_generation_prompt=True, **given)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_for_the_engine_say_the_same(name: str) -> None:
    special = {"bos_token": "<s>", "eos_token": '</s>"\\'}
    wanted = render(TEMPLATES[name], messages=TURNS, **special)
    assert render(engine_template(TEMPLATES[name], special, puts_bos=False), messages=map(in_parts, TURNS)) == wanted
    behind_bos = engine_template(TEMPLATES[name], special, puts_bos=True)
    assert render(behind_bos, messages=TURNS) == wanted.removeprefix("<s>")


def test_what_the_engines_template_language_lacks_is_taken_out() -> None:
    template = "{%- generation -%}{{ messages[0].get('content') }}{% endgeneration %}"
    assert engine_template(template, {}, puts_bos=False).endswith("{{ messages[0]['content'] }}")


def make_artifact(folder: Path, *, template: str = "", **changes: Any) -> Path:
    """An artifact's folder without a model."""
    folder.mkdir()
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}')
    artifact = Artifact(
        schema=1,
        target="litert",
        model="model.tflite",
        model_files=("model.tflite",),
        files=(),
        family="llama",
        parameters=1,
        vocab_size=400,
        context_tokens=64,
        settings=Settings(context_tokens=64, ubatch_tokens=16, threads=1, kv_type="f32"),
        bos_id=0,
        eos_ids=(2, 0),
        add_bos=True,
        parent="",
        tokenizer_proof="",
    )
    save_json(folder / "artifact.json", msgspec.structs.replace(artifact, **changes))
    return folder


def test_the_engine_is_told_where_texts_begin_and_end(tmp_path: Path) -> None:
    told = engine_metadata(Text(make_artifact(tmp_path / "text")))
    assert [list(token.token_ids.ids) for token in told.stop_tokens] == [[2], [0]]
    assert list(told.start_token.token_ids.ids) == [0]
    assert told.max_num_tokens == 64 and not told.jinja_prompt_template
    assert told.llm_model_type.WhichOneof("model_type") == "generic_model"


@pytest.mark.parametrize(("template", "begins"), [("{{ bos_token }}" + CHATML, True), (CHATML, False)])
def test_bos_is_where_conversations_have_it(template: str, begins: bool, tmp_path: Path) -> None:
    """An empty entry would end the engine's process, so there is none."""
    told = engine_metadata(Text(make_artifact(tmp_path / "chat", template=template)))
    assert told.HasField("start_token") is begins
    assert llm_metadata_pb2.LlmMetadata.FromString(told.SerializeToString()) == told
    rendered = render(told.jinja_prompt_template, messages=[in_parts(TURNS[1])])
    assert rendered == render(template, messages=[TURNS[1]], bos_token="")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "onnx"}, "onnx artifacts cannot be packed"),
        ({"task": "encoder"}, "encoders cannot be packed"),
        ({"eos_ids": ()}, "needs a token that ends answers"),
    ],
)
def test_what_the_engine_cannot_run_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a", **changes)
    before = load_json(folder / "artifact.json", Artifact)
    with pytest.raises(UnsupportedError, match=said):
        add_container(folder)
    assert load_json(folder / "artifact.json", Artifact) == before


def test_another_file_is_not_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "x.litertlm").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(DeviceError, match=r"not a \.litertlm file"):
        read_sections(tmp_path / "x.litertlm")
