"""Reading a reply that has more in it than the description, or that has none."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from gsec_core.captioners import template
from gsec_core.captioners.refusals import is_refusal
from gsec_core.captioners.replies import is_only_reasoning, said
from gsec_core.errors import GsecError, Refused
from gsec_core.tables import DESCRIBED, FAILED, FREE

from .examples import GOOD, STAMPS, describe, subject
from .server import Server, as_json, captioner, reply

pytestmark = pytest.mark.usefixtures("quick")

AROUND = [
    "{}",
    "<think>Okay, the user wants one sentence.</think>\n\n{}",
    "Okay, the user wants one sentence.\n</think>\n{}",
    "<think></think>{}",
    "<think>\n\n</think>\n\n{}<|im_end|>",
    "<THINKING>a\nb</THINKING> {}",
    "<reasoning>a</reasoning>{}",
    "[THINK]a[/THINK]{}",
    "◁think▷a◁/think▷{}",
    "<think>a</think><think>b</think>{}",
    "<|channel|>analysis<|message|>A bus.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "{}<|im_end|>",
    "{}</s>",
    "{}<|eot_id|>",
    "{}<end_of_turn>\n",
    "<s> {} </s>",
    "<|begin_of_box|>{}<|end_of_box|>",
    "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\nWhat else?",
    "[INST] {} [/INST]",
    "<answer>{}</answer>",
    "{}<｜end▁of▁sentence｜>",
    '{{"description": "{}"}}',
    '{{"Caption": "{}", "confidence": 0.9}}',
    '```json\n{{"description": "{}"}}\n```',
    "```\n{}\n```",
    '["{}"]',
    '"{}"',
    '<think>a</think>```json\n{{"text": "{}"}}\n```<|im_end|>',
]

REASONING = [
    "<think>Okay, the user wants",
    "<think>Okay, this image contains a bus. I say: This image contains a bus characterised by",
    "<think></think>",
    "<think>a</think>  ",
    "a\n</think>",
    "<Thinking>a",
    "[THINK]a",
    "◁think▷a",
    "<|channel|>analysis<|message|>A bus.",
]


@pytest.mark.parametrize("around", AROUND)
def test_the_sentence_is_found_among_reasoning_markup_and_json(around: str) -> None:
    text = around.format(GOOD)
    assert said(text) == GOOD
    assert not is_only_reasoning(text)
    assert template.parse(text)[:1] + template.parse(text)[3:4] == (GOOD, DESCRIBED)


@pytest.mark.parametrize("text", REASONING)
def test_a_reply_with_only_reasoning_is_a_failure(text: str) -> None:
    assert is_only_reasoning(text)
    assert template.parse(text).status == FAILED


@pytest.mark.parametrize(
    "text",
    ["a < b and c > d", "A sign: <b>Sale</b>", "A page of code: {x: 1}", "{not json", "[a] b", "A poster that says <think> about it", "", "``` code", "A </b>"],
)
def test_other_text_is_left_unchanged(text: str) -> None:
    assert said(text) == text
    assert not is_only_reasoning(text)


@pytest.mark.parametrize("around", AROUND)
def test_a_sentence_with_markup_around_it_needs_only_one_request(server: Server, around: str) -> None:
    server.says(around.format(GOOD))
    answer = describe(captioner(server), subject())
    assert (answer.text, answer.status, len(server.asked)) == (GOOD, DESCRIBED, 1)


@pytest.mark.parametrize("text", [*REASONING, None])
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_server_that_only_reasons_is_refused_before_any_image(server: Server, text: str | None, finish: str) -> None:
    server.answer = lambda request: reasoned(text, finish)
    with pytest.raises(Refused, match=r"answers with reasoning only.*enable_thinking.*raise describe.max_tokens = 96"):
        captioner(server).check()
    assert not server.asked


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_server_that_accepts_the_pattern_but_only_reasons_is_refused_too(server: Server, field: str) -> None:
    server.probe = server.answer = lambda request: reasoned(None, "length", field)
    with pytest.raises(Refused, match="answers with reasoning only"):
        captioner(server).check()


def test_a_server_that_does_not_show_its_reasoning_but_counts_it_is_refused_too(server: Server) -> None:
    body = json.loads(reply("", "length").body)
    body["usage"]["completion_tokens_details"] = {"reasoning_tokens": 96}
    server.answer = lambda request: as_json(body)
    with pytest.raises(Refused, match=r"answers with reasoning only.*raise describe.max_tokens = 96"):
        captioner(server).check()


def test_an_image_with_only_reasoning_as_reply_is_failed(server: Server) -> None:
    server.says(reasoned(None, "length"))
    answer = describe(captioner(server), subject())
    assert (answer.status, answer.text) == (FAILED, None)
    assert "reasoning without a description, and cut at describe.max_tokens" in str(answer.reason)


@pytest.mark.parametrize("finish", ["abort", "error", "insufficient_system_resource"])
def test_a_reply_that_the_server_aborted_is_asked_for_again(server: Server, finish: str) -> None:
    server.says(reply("This image contains a red", finish=finish), reply("", finish=finish), GOOD)
    answer = describe(captioner(server), subject())
    assert (answer.text, answer.status, len(server.asked)) == (GOOD, DESCRIBED, 3)


def test_replies_that_are_always_aborted_are_an_error_and_no_answer(server: Server) -> None:
    server.says(reply("This image contains a red", finish="abort"))
    with pytest.raises(GsecError, match=r"broke its reply off \(abort\) 10 times. All answers are kept"):
        describe(captioner(server), subject())


REFUSALS = [
    "Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.",
    "Leider kann ich dabei nicht helfen.",
    "Ich kann keine Personen auf Bildern identifizieren.",
    "Je suis désolé, mais je ne peux pas décrire cette image.",
    "Désolé, je ne peux pas vous aider.",
    "En tant qu’IA, je ne peux pas voir les images.",
    "Lo siento, no puedo ayudar con eso.",
    "No puedo describir esta imagen.",
    "Desculpe, mas não posso ajudar com isso.",
    "Sinto muito, não consigo identificar pessoas.",
    "Mi dispiace, ma non posso descrivere questa immagine.",
    "Het spijt me, maar ik kan deze afbeelding niet beschrijven.",
    "Tyvärr kan jag inte hjälpa till med det.",
    "Beklager, det kan jeg ikke hjelpe med.",
    "Przykro mi, ale nie mogę opisać tego obrazu.",
    "Omlouvám se, ale s tím nemohu pomoci.",
    "Sajnálom, de ebben nem tudok segíteni.",
    "Îmi pare rău, dar nu pot descrie imaginea.",
    "Λυπάμαι, δεν μπορώ να βοηθήσω.",
    "Извините, я не могу описать это изображение.",
    "К сожалению, я не могу помочь.",
    "Вибачте, я не можу описати це зображення.",
    "Üzgünüm, bu görüntüyü tanımlayamam.",
    "很抱歉,我无法描述这张图片。",
    "对不起,我不能帮助您。",
    "抱歉，我無法協助。",
    "作为一个人工智能，我无法查看图片。",
    "申し訳ありませんが、この画像を説明することはできません。",
    "すみません、お手伝いできません。",
    "죄송하지만 이 이미지를 설명할 수 없습니다.",
    "عذرًا، لا أستطيع وصف هذه الصورة.",
    "متأسفم، نمی‌توانم این تصویر را توصیف کنم.",
    "מצטער, אני לא יכול לתאר את התמונה.",
    "क्षमा करें, मैं इस छवि का वर्णन नहीं कर सकता।",
    "Xin lỗi, tôi không thể mô tả hình ảnh này.",
    "Maaf, saya tidak dapat membantu.",
    "ขออภัย ฉันไม่สามารถอธิบายภาพนี้ได้",
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I cannot see images.",
    "Unable to process this image.",
    "As a text-based AI model, I can't view images.",
    "I'm just a language model.",
    "I don't see an image attached. Could you share it?",
    "It seems that no image was provided.",
    "There is no image in your message.",
    "Please upload the image that I should describe.",
    "I'd be happy to describe the image, but I can't see it.",
    "Sure! Please provide the image.",
    "Hello! How can I help you today?",
    "It looks like you haven't attached an image.",
    "I am not allowed to describe this image.",
    "We are sorry, but we cannot help with that.",
    "Cannot describe this image.",
    "Sorry",
    "This request violates our usage policies.",
    "Image not found.",
    "No image found",
    "The image you uploaded could not be loaded.",
    "The image is not visible to me.",
    "It seems the image is missing.",
    "Error loading image.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_in_many_languages_are_failures(text: str) -> None:
    assert is_refusal(text)
    assert template.parse(text).status == FAILED


@pytest.mark.parametrize(
    "text",
    [
        "Ein roter Bus, an dem steht: Es tut mir leid.",
        "Ich sehe einen roten Bus.",
        "Un autobus rouge à deux étages.",
        "Un cartel que dice: no puedo.",
        "No people are in this picture, only a bus.",
        "Une affiche avec le mot désolé.",
        "Ein Ich-kann-nicht-mehr-Schild.",
        "图片中有一辆红色的公共汽车。",
        "赤いバスの写真です。",
        "빨간 버스가 있다.",
        "На изображении красный автобус.",
        "Sorrel horse on a meadow.",
        "Leider-Apotheke, ein Haus mit rotem Dach.",
        "Alsatian dog on a lawn.",
        "Perdonavano, a village on a hill.",
        "Unablemished fruit in a bowl.",
        "No image editor, but a paint box.",
        "There is no imagery on this white wall.",
        "A sign: Please share the road.",
        "Image not found sign on a brick wall.",
        "The image is missing its lower half, and shows a bus.",
        "The photo found on the desk shows a bus.",
        "This image displayed on a screen is of a bus.",
        "Images of buses.",
        "Error message on a computer screen.",
        "Unknown soldier's tomb.",
        "Can opener on a table.",
        "Your request desk in a library.",
        "Hello Kitty doll with a bow.",
    ],
)
def test_descriptions_that_resemble_refusals_are_kept(text: str) -> None:
    assert not is_refusal(text)
    assert template.parse(text).status == FREE


@pytest.mark.skipif(not STAMPS.exists(), reason=f"{STAMPS} is absent")
def test_no_description_by_a_person_is_a_refusal() -> None:
    descriptions = pq.read_table(STAMPS, columns=["description"])["description"].to_pylist()
    assert len(descriptions) == 317
    assert {template.parse(text).status for text in descriptions} == {FREE}


def reasoned(text: str | None, finish: str, field: str = "reasoning_content") -> Any:
    """A reply whose reasoning is in the text, or in a field of its own if there is no text."""
    body = {"index": 0, "message": {"role": "assistant", "content": text, field: None if text else "Okay, the user"}, "finish_reason": finish}
    return as_json({"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [body]})
