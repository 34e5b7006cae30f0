"""Every setting with wrong values is refused by one sentence that names it and what to give, before anything is written, listed or loaded.

The settings are found by reflection, so that a test fails until a new setting has its own wrong values here.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.cli import main
from gsec_core.config import PipelineConfig, accepts
from gsec_core.errors import Refused
from gsec_core.settings import load_config

from .command import gsec

SECRET = "hunter2"


def fields(settings: type[BaseModel] = PipelineConfig, section: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting's full name and field."""
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{section}{name}.")
        else:
            yield section + name, field


def kinds(field: FieldInfo) -> list[object]:
    """The kinds of value a setting accepts: int, float, bool, str or a list of values."""
    return [kind for kind, _ in accepts(field)]


SETTINGS = dict(fields())
NUMBERS = [name for name, field in SETTINGS.items() if {int, float} & set(kinds(field))]


def beyond(field: FieldInfo) -> list[object]:
    """Values just outside the range of a number, one at each end."""
    [(number, bounds)] = [(kind, bounds) for kind, bounds in accepts(field) if kind in (int, float)]
    step = 1 if number is int else 0.001
    ends = {"ge": -step, "gt": 0, "le": step, "lt": 0}
    return [value + ends[name] for name, value in bounds.items()]


NONSENSE: dict[str, list[tuple[str, str]]] = {
    "text.vocabulary": [
        ("words", "there is no such vocabulary; there are `wordnet`, `imagenet` and `file:PATH`"),
        ("file:{here}/nowhere", "it cannot be read (No such file or directory). Give a text file"),
    ],
    "text.encoder": [("foo", "a second encoder needs text.source = encoder"), ("", "a second encoder needs text.source = encoder")],
    "text.prompts": [("a photo", "has no place for the word; write one {} in it")],
    "method": [
        ("magic", "there is no such method; there are `gsec`, "),
        ("", "there is no such method"),
        ("tac,tac", "Give each method once"),
        ("gsec,zero-shot", "takes a name for each"),
    ],
    "source": [
        ("", "give a folder, a .parquet file or a .tar file"),
        ("{here}/nowhere", "nowhere is not there: check the path"),
        ("{here}/*.jpg", "A glob can only name .parquet or .tar files: for image files, give their folder."),
        ("{here}/a.tar.gz", "unpack it"),
        (f"http://me:{SECRET}@host/x", "copy it to a folder, or use one of"),
        ("a::s3://b/c", "give a plain path or URL"),
        ("s3://", "write s3://BUCKET/FOLDER"),
    ],
    "store": [
        ("", "give text that is not empty"),
        ("{here}/file/store", "Choose another store"),
        (f"http://me:{SECRET}@host/x", "must not contain credentials"),
        ("http://host/x", "a store is a folder or one of"),
        (f"s3://bucket/store?key={SECRET}", "must not contain a question mark"),
        ("s3://", "names no bucket"),
        ("s3:///store", "names no bucket"),
        (f"s3://me:{SECRET}@bucket", "give them in the environment"),
        ("a::b", "a store is a folder or one of"),
    ],
    "corpus": [("A B", "a corpus's name has a-z"), ("runs", "not curation or published or runs"), ("../x", "a corpus's name has a-z")],
    "pipeline": [("A B", "a pipeline's name has a-z"), ("../x", "a pipeline's name has a-z"), ("", "a pipeline's name has a-z")],
    "scratch": [("{here}/nowhere", "Make the folder, or name another"), ("{here}/file", "Make the folder, or name another")],
    "ingest.image_column": [("picture", "it has other")],
    "encode.encoder": [
        ("", "there are `lite` and `open_clip:MODEL:PRETRAINED`"),
        ("foo", "there are `lite` and `open_clip:MODEL:PRETRAINED`"),
        ("lite:x", "write `lite` alone"),
        ("open_clip:ViT-B-32", "write `open_clip:MODEL:PRETRAINED`"),
        ("open_clip:ViT-B-33:openai", "similar names are ViT-B-32"),
        ("open_clip:ViT-B-32:nowhere", "whose tags are openai, "),
        ("open_clip:ViT-B-32:{here}/x.pt", "there is no file"),
        ("open_clip:local-dir:{here}", "open_clip_config.json does not exist"),
    ],
    "encode.device": [("gpu7", "choose `auto`, `cpu`, `cuda` or `cuda:N`"), ("cuda:99", "`auto` uses the CPU")],
    "ray.address": [("", "give `auto`, HOST:PORT"), ("head", "ray://HOST:PORT"), (f"ray://me:{SECRET}@head:1", "ray://HOST:PORT")],
    "train.device": [("gpu7", "choose `auto`, `cpu`, `cuda` or `cuda:N`"), ("cuda:99", "`auto` uses the CPU")],
    "describe.captioner": [
        ("", "there are `tagger`, `openai:MODEL` and `table:FILE:COLUMN`"),
        ("gpt", "there are `tagger`, `openai:MODEL` and `table:FILE:COLUMN`"),
        ("openai:", "there are `tagger`, `openai:MODEL` and `table:FILE:COLUMN`"),
        ("table:x.txt", "write `table:FILE:COLUMN`"),
        ("table:{here}/nowhere.csv:text", "there is no file"),
        (f"table:s3://me:{SECRET}@bucket/x.csv", "without credentials"),
    ],
    "describe.criterion": [("the colour", "Name an openai:MODEL"), ("", "name one aspect on one line")],
    "describe.template": [("nowhere.toml", "Name an openai:MODEL"), ("", "Name an openai:MODEL")],
    "describe.url": [
        ("ftp://x", "give an address such as http://HOST:PORT/v1"),
        (f"http://me:{SECRET}@host/v1", "without credentials"),
        ("", "give an address such as http://HOST:PORT/v1"),
    ],
    "publish.namer": [
        ("llm", "choose `terms`, `nouns` or `openai:MODEL`"),
        ("openai:", "choose `terms`, `nouns` or `openai:MODEL`"),
        ("", "choose `terms`"),
    ],
}
"""For every text setting: values that name nothing, and a part of the remedy that the error must give."""

ALSO_CALLED = {"source": "Source", "store": "--store", "corpus": "--corpus"}
"""Settings that the error calls by their flag or by what they are."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands run. It has one plain file, below which no folder can be made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    return tmp_path


def refusal(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints, without "error: "."""
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    said = capsys.readouterr()
    assert exit.value.code == 2, said.err
    assert said.out == ""
    assert said.err.startswith("error: ")
    [line] = said.err.splitlines()
    return line.removeprefix("error: ")


def in_plain_words(sentence: str) -> bool:
    return not any(word in sentence.lower() for word in ("input should", "valid", "parse", "traceback", "pydantic", SECRET))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_error_of_a_value_of_a_wrong_type_names_the_settings_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "gsec.toml"
    file.write_text(f"{name} = [1]\n")
    with pytest.raises(Refused) as refused:
        load_config(file)
    assert str(refused.value).startswith(f"{name} = [1] (from {file}): give ")
    assert in_plain_words(str(refused.value))


@pytest.mark.parametrize("name", [name for name, field in SETTINGS.items() if str not in kinds(field)])
def test_the_error_of_a_word_that_is_no_valid_value_names_the_environment_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"GSEC_{name.replace('.', '__').upper()}"
    monkeypatch.setenv(variable, "many")
    with pytest.raises(Refused) as refused:
        load_config()
    assert str(refused.value).startswith(f'{name} = "many" (from {variable}): give ')
    assert in_plain_words(str(refused.value))


@pytest.mark.parametrize("name", NUMBERS)
def test_the_error_of_a_number_out_of_range_gives_both_ends_of_the_range(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    field = SETTINGS[name]
    for value in beyond(field):
        sentence = refusal("run", "nowhere", "--set", f"{name}={value}", capsys=capsys)
        assert sentence.startswith(f'{name} = "{value}": give ')
        assert f" a {'whole ' if int in kinds(field) else ''}number, " in sentence
        assert " and " in sentence, "the error must give both ends of the range"
        assert in_plain_words(sentence)
    assert files(here) == [here / "file"]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_value_that_is_no_finite_number_is_refused(name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, "nan", "inf", "", "1e999", "0,5"):
        with pytest.raises(Refused, match=rf"^{name} = .*: give (`auto` or )?a (whole )?number, "):
            load_config(overrides=nested(name, value))


def nested(name: str, value: object) -> dict[str, Any]:
    section, _, last = name.rpartition(".")
    return {section: {last: value}} if section else {last: value}


def test_every_text_setting_has_nonsense_values_in_this_file() -> None:
    # ingest.exclude has globs, which are allowed to match nothing.
    assert sorted([*NONSENSE, "ingest.exclude"]) == sorted(name for name, field in SETTINGS.items() if str in kinds(field))


@pytest.mark.parametrize(("name", "value", "remedy"), [(name, *case) for name, cases in NONSENSE.items() for case in cases])
def test_a_name_that_names_nothing_is_refused_before_the_source_is_listed(
    name: str, value: str, remedy: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "nowhere"  # if the source were listed first, the error would be that it does not exist
    if name == "ingest.image_column":
        source = parquet_without_images(here)
    before = files(here)
    value = value.format(here=here)
    given = [value] if name == "source" else [source, "--set", f"{name}={value}"]
    sentence = refusal("run", *given, capsys=capsys)
    assert name in sentence or ALSO_CALLED.get(name, name).lower() in sentence.lower()
    assert remedy in sentence
    assert in_plain_words(sentence)
    assert files(here) == before, "nothing is written"


def parquet_without_images(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"other": [1]}), folder / "images.parquet")
    return str(folder / "images.parquet")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "thread=2"], "thread: there is no such setting; did you mean threads?"),
        (["--set", "batch_size=2"], "batch_size: there is no such setting; did you mean encode.batch_size?"),
        (["--set", "encode.batch=2"], "encode.batch: there is no such setting; did you mean encode.batch_size?"),
        (["--set", "fuse.zzz=2"], "fuse.zzz: there is no such setting; there are fuse.counterpart, fuse.text_weight, fuse.tau, fuse.max_lost_weight."),
        (["--set", "encoding.batch_size=2"], "encoding: there is no such setting; did you mean encode"),
        (["--set", f"describe.api_key={SECRET}"], "describe.api_key: there is no such setting; "),
        (["--set", "encode=lite"], 'encode = "lite": it is a section; give its settings, such as encode.encoder.'),
        (["--set", "encode.encoder.x=2"], 'encode.encoder = {"x": "2"}: give text'),
        (["--set", "clusters"], "--set clusters: write it as section.name=value."),
        (["--set", "=2"], "--set =2: write it as section.name=value."),
        (["--config", "nowhere.toml"], "--config nowhere.toml: it cannot be read (No such file or directory). Give a TOML file"),
        (["--config", "file.toml"], "--config file.toml: it is not TOML (Invalid value (at line 1, column 12)). Write `clusters = 10`"),
        (["-k", "ten"], 'clusters = "ten": give `auto` or a whole number, at least 2 and at most 100,000.'),
        (["--bogus"], "--bogus"),
    ],
)
def test_an_unknown_setting_or_flag_is_refused_with_a_suggestion(arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file.toml").write_text("clusters = ten\n")
    sentence = refusal("run", "nowhere", *arguments, capsys=capsys)
    assert says in sentence
    assert SECRET not in sentence


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("GSEC_CLUSTER", "cluster (from GSEC_CLUSTER): there is no such setting; did you mean clusters?"),
        ("GSEC_BATCH_SIZE", "batch_size (from GSEC_BATCH_SIZE): there is no such setting; did you mean encode.batch_size?"),
        ("GSEC_ENCODE_BATCH_SIZE", "encode_batch_size (from GSEC_ENCODE_BATCH_SIZE): there is no such setting; did you mean encode.batch_size?"),
        ("GSEC_ENCODE__BATCHSIZE", "encode.batchsize (from GSEC_ENCODE__BATCHSIZE): there is no such setting; did you mean encode.batch_size?"),
        (
            "GSEC_FUSE__ZZZ",
            "fuse.zzz (from GSEC_FUSE__ZZZ): there is no such setting; there are fuse.counterpart, fuse.text_weight, fuse.tau, fuse.max_lost_weight.",
        ),
        ("GSEC_ENCODE", 'encode = "32" (from GSEC_ENCODE): it is a section; give its settings, such as encode.encoder.'),
    ],
)
def test_a_misspelt_environment_variable_is_refused_with_a_suggestion(variable: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "32")
    with pytest.raises(Refused) as refused:
        load_config()
    assert str(refused.value) == says


def test_other_programs_gsec_variables_and_the_key_are_not_read_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GSEC_CAPTIONER_KEY", "GSEC_STORE_SERVICE_HOST", "GSEC_PORT_8000_TCP", "GSEC_VLLM_PORT"):
        monkeypatch.setenv(variable, "tcp://10.0.0.1:8000")
    assert load_config() == PipelineConfig()


def test_a_settings_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gsec.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match=r"gsec\.toml: it is not TOML"):
        load_config(tmp_path / "gsec.toml")


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "gsec.toml").write_text("clusters = 7\n", encoding="utf-8-sig")
    assert load_config(tmp_path / "gsec.toml").clusters == 7


@pytest.mark.parametrize("name", ["store", "scratch", "describe.captioner", "text.vocabulary"])
def test_a_path_that_is_not_utf8_is_refused_with_this_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, _, last = name.rpartition(".")
    with pytest.raises(Refused, match=rf"^{name} = 'file:caf\\udce9': it is not UTF-8\. Rename the file or folder"):
        load_config(None, {section: {last: "file:caf\udce9"}} if section else {name: "file:caf\udce9"})
    monkeypatch.setenv("GSEC_STORE", "caf\udce9")
    with pytest.raises(Refused, match=r"^store = 'caf\\udce9' \(from GSEC_STORE\): it is not UTF-8"):
        load_config()


def test_a_tilde_in_a_settings_file_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "gsec.toml"
    file.write_text('source = "~/in"\nstore = "~/store"\nscratch = "~/tmp"\n')
    config = load_config(file)
    assert (config.source, config.store, config.scratch) == (f"{tmp_path}/in", f"{tmp_path}/store", f"{tmp_path}/tmp")


def test_a_tilde_after_a_colon_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(
        overrides={
            "encode": {"encoder": "open_clip:ViT-B-32:~/a.pt"},
            "describe": {"captioner": "table:~/b.csv:~c", "template": "~/d.toml"},
            "text": {"encoder": "open_clip:local-dir:~/e", "vocabulary": "file:~/f.txt"},
        }
    )
    assert (config.encode.encoder, config.text.encoder) == ("open_clip:ViT-B-32:/home/me/a.pt", "open_clip:local-dir:/home/me/e")
    assert (config.describe.captioner, config.describe.template) == ("table:/home/me/b.csv:~c", "/home/me/d.toml")
    assert config.text.vocabulary == "file:/home/me/f.txt"


def test_the_files_of_a_glob_that_the_shell_expanded_are_not_all_printed(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    said = refusal("run", *(f"{number}.jpg" for number in range(3000)), capsys=capsys)
    assert said.startswith("1.jpg and 2,998 more arguments are not expected. If the shell expanded a glob, put the glob in quotes, or name the folder.")
    assert refusal("status", "store", capsys=capsys).startswith("store is not expected.")


def test_a_tilde_after_the_equals_sign_of_an_option_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert "--config /home/me/no.toml: it cannot be read" in refusal("run", "--config=~/no.toml", capsys=capsys)


def test_flags_override_variables_which_override_the_file_which_overrides_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gsec.toml"
    file.write_text("clusters = 3\nthreads = 3\n[encode]\nbatch_size = 3\nworkers = 3\nthumbnail_size = 33\n")
    monkeypatch.setenv("GSEC_THREADS", "4")
    monkeypatch.setenv("GSEC_ENCODE__WORKERS", "4")
    monkeypatch.setenv("gsec_encode__batch_size", "4")
    config = load_config(file, {"encode": {"batch_size": "5"}})
    assert (config.clusters, config.threads, config.max_workers) == (3, 4, 1)
    assert (config.encode.batch_size, config.encode.workers, config.encode.thumbnail_size) == (5, 4, 33)


def test_a_wrong_value_that_is_overridden_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSEC_CLUSTERS", "many")
    assert load_config(overrides={"clusters": 5}).clusters == 5


def test_a_long_value_is_shortened_in_the_error(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert len(refusal("run", "nowhere", "--set", f"clusters={'9' * 5000}", capsys=capsys)) < 200


def test_the_command_prints_one_line_for_a_wrong_setting_and_exits_with_2(tmp_path: Path) -> None:
    done = gsec("run", tmp_path, "--store", tmp_path / "store", "--set", "encode.device=gpu7", home=tmp_path, check=2)
    assert done.stderr == 'error: encode.device = "gpu7": choose `auto`, `cpu`, `cuda` or `cuda:N`.\n'
    assert list(tmp_path.iterdir()) == []
