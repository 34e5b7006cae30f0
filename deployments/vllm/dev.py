"""A vLLM server for development on a CPU: a real server, with a model so small that it needs neither a GPU nor a download.

Run by the Python of the environment that holds vLLM, not by the project's:

    .venv-vllm/bin/python deployments/vllm/dev.py start /tmp/tiny --port 8000
    .venv-vllm/bin/python deployments/vllm/dev.py stop /tmp/tiny --port 8000

The model is Qwen2.5-VL in every part (image processor, chat template, vision tower, language model), at random weights. It has learned nothing:
where its replies are sentences of the template, the server's structured output made them so. Linux only, as vLLM is.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

START_SECONDS, STOP_SECONDS = 300, 30
"""Seconds that a start may take, and seconds after which a stop kills the processes."""

OBJECTS = ("red bus", "small dog", "wooden chair", "stone bridge", "sailing boat", "white flower", "mountain bike", "street lamp", "orange")
ATTRIBUTES = ("large windows", "bright colour", "round wheels", "soft brown fur", "smooth surface", "long handle", "thin legs", "green leaves")

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB. The default takes a good part of the machine's memory.
    # Threads only wait for each other in so small a model, and two servers, or a server and its client, would be bound to the same core.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",  # Everything is in the model's folder. Looking elsewhere costs time, and fails without a network.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def main() -> None:
    # Arguments after "--" are for vLLM; argparse would try to parse them.
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:end])
    match options.command:
        case "build":
            build(options.dir)
        case "start":
            print(start(options.dir, options.port, options.model_name, options.log, given[end + 1 :]))
        case "stop":
            stop(options.dir, options.port)


def build(folder: Path) -> None:
    """Write the model: 2.5 MB in a few seconds, the same each time."""
    # Imported here, because `stop` needs none of it.
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=list(SPECIAL_TOKENS)
    )
    number = tokenizer.convert_tokens_to_ids
    # Ten times the usual initial spread, so that the image affects the text and replies differ.
    spread = {"initializer_range": 0.2}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            # Time, height and width share half of a head's 32 dimensions.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
            "tie_word_embeddings": False,
            **spread,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
            **spread,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
        **spread,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    # Written last, because `start` takes its file as the sign that the model is complete.
    Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def start(folder: Path, port: int, model_name: str, log: Path | None, extra: list[str]) -> str:
    """Start the server as a process group of its own, and wait until it answers. Returns its base URL."""
    pid_file = _pid_file(folder, port)
    if _members(pid_file):
        sys.exit(f"A server of {folder} runs on port {port} already. Stop it first.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"Something else listens on port {port}.")
    if not (folder / "processor_config.json").exists():
        build(folder)
    log = log or folder / f"server-{port}.log"
    with log.open("wb") as output:
        # A session of its own: the engine's processes stay in its group even if their parent is gone, and can be found by the group.
        server = subprocess.Popen(
            _command(folder, port, model_name, extra),
            env=ENVIRONMENT | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pid_file.write_text(f"{server.pid}\n")
    try:
        problem = _wait_until_healthy(server, port)
    except BaseException:
        stop(folder, port)
        raise
    if problem:
        stop(folder, port)
        sys.exit(f"The server {problem}. The end of {log}:\n{_tail(log)}")
    return f"http://127.0.0.1:{port}/v1"


def stop(folder: Path, port: int) -> None:
    """Stop every process of the server's group, and wait until none is left. Does nothing if there is none."""
    pid_file = _pid_file(folder, port)
    for sign, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        end = time.monotonic() + seconds
        if group := _members(pid_file):
            os.killpg(group[0].group, sign)
        while _members(pid_file) and time.monotonic() < end:
            time.sleep(0.1)
    if left := _members(pid_file):
        sys.exit(f"Not even SIGKILL ended {', '.join(str(process.number) for process in left)}.")
    pid_file.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A vLLM server for development on a CPU, with a tiny random model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (
        ("build", "Write the model."),
        ("start", "Start the server in the background and print its base URL. Flags after -- go to vllm serve. VLLM_API_KEY is the key, if one is set."),
        ("stop", "Stop it, with all of its processes."),
    ):
        command = commands.add_parser(name, help=does, description=does)
        command.add_argument("dir", type=Path, help="folder of the model, and of the server's log and process number")
        if name != "build":
            command.add_argument("--port", type=int, required=True)
        if name == "start":
            command.add_argument("--model-name", default="tiny", help="what requests call the model (default: tiny)")
            command.add_argument("--log", type=Path, help="the server's log (default: DIR/server-PORT.log)")
    return parser


def _trained_tokenizer() -> Any:
    """A byte-level tokenizer, so that it can write any text, trained on sentences of the template, so that these take few tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    attributes = cycle(ATTRIBUTES)
    sentences = [
        f"This image contains {'an' if thing[0] in 'aeiou' else 'a'} {thing} characterised by {next(attributes)}, {next(attributes)} and {next(attributes)}."
        for thing in OBJECTS * 4
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=640, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet))
    return tokenizer


def _command(folder: Path, port: int, model_name: str, extra: list[str]) -> list[str]:
    flags = {
        "--served-model-name": model_name,
        "--host": "127.0.0.1",
        "--port": str(port),
        # Tokens of prompt and reply. More would reserve more memory at the start.
        "--max-model-len": "2048",
        # One image in each request. With no videos, the memory for videos is not measured at the start.
        "--limit-mm-per-prompt": '{"image": 1, "video": 0}',
        # These three as on a GPU; the reasons are in serve.sh.
        "--allowed-media-domains": "none.invalid",
        "--generation-config": "vllm",
        "--structured-outputs-config": '{"backend": "xgrammar"}',
    }
    # These two only make the start faster: nothing is compiled, and the vision tower's memory is not measured.
    switches = ["--enforce-eager", "--skip-mm-profiling"]
    return [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), *(part for flag in flags.items() for part in flag), *switches, *extra]


def _wait_until_healthy(server: subprocess.Popen[bytes], port: int) -> str | None:
    """Wait until the server answers. Returns None, or what went wrong."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            return f"ended with exit status {server.returncode}"
        if _healthy(port):
            return None
        time.sleep(0.5)
    return f"did not become healthy within {START_SECONDS} seconds"


def _healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class _Process(NamedTuple):
    number: int
    state: str
    group: int
    session: int


def _members(pid_file: Path) -> list[_Process]:
    """The living processes of the group in the file. Zombies are left out: they still have a number, but hold no resources."""
    try:
        number = int(pid_file.read_text())
    except (OSError, ValueError):
        return []
    # The session is compared too: if the number was reused for a group that does not lead its session, it is not the server.
    return [process for process in _processes() if process.group == process.session == number and process.state not in "ZX"]


def _processes() -> list[_Process]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The process name, in brackets, may contain any characters; the fields after it do not.
            state, _, group, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        found.append(_Process(int(folder.name), state, int(group), int(session)))
    return found


def _pid_file(folder: Path, port: int) -> Path:
    return folder / f"server-{port}.pid"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


if __name__ == "__main__":
    main()
