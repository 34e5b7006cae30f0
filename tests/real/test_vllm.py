"""A real vLLM server as stage describe needs it."""

import base64
import io
import re

import openai

from gsec_core.captioners import template
from tests.pictures import picture

from .vllm_server import VllmServer


def test_the_server_enforces_the_pattern_of_the_template(vllm_server: VllmServer) -> None:
    pixels = io.BytesIO()
    picture(seed=1).save(pixels, "JPEG", quality=90)
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(pixels.getvalue()).decode()}"}}
    with openai.OpenAI(base_url=vllm_server.url, api_key="none is wanted", max_retries=0) as client:
        [choice] = client.chat.completions.create(
            model=vllm_server.model,
            messages=[{"role": "user", "content": [{"type": "text", "text": template.prompt(None)}, image]}],
            max_tokens=256,
            temperature=0,
            extra_body={"structured_outputs": {"regex": template.SENTENCE_PATTERN}},
        ).choices
    assert choice.finish_reason == "stop"
    assert re.fullmatch(template.SENTENCE_PATTERN, choice.message.content)


def test_after_a_kill_of_the_api_process_a_stop_leaves_no_process_behind(vllm_server: VllmServer) -> None:
    vllm_server.kill_api()
    assert "VLLM::EngineCor" in vllm_server.processes().values()
    vllm_server.stop()
    assert not vllm_server.processes()
    vllm_server.start()
