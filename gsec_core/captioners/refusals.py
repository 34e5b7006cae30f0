"""Recognises refusals by their beginning, in many languages, since some models answer in their own language whatever the language of the question."""

import re

_NO_IMAGE = (
    r"(?:error:? )?(?:it (?:seems|appears|looks like)(?: that)? )?"
    r"(?:(?:no|the|this|your) )?(?:(?:attached|provided|requested|uploaded) )?(?:image|picture|photo)(?: you (?:attached|provided|sent|shared|uploaded))? "
    r"(?:(?:appears to be|seems to be|has been|can|could|did|is|was) )?(?:not |cannot |failed to )?(?:be |been )?"
    r"(?:available|displayed|found|load(?:ed)?|missing|opened|processed|provided|unavailable|upload(?:ed)?|viewed|visible)(?: to me)?(?:[.!]|\Z)"
    r"|(?:error|failed) (?:loading|opening|processing|to (?:load|open|process)) (?:the |this |your )?(?:image|picture|photo)\b"
)
"""Sentences that say only that there is no image. They must end there: there are signs with these words, and images of what is missing."""

_ENGLISH = re.compile(
    r"\W*(?:(?:sure|certainly|of course|hello|hi)(?: there)?[,.!] ?)?"
    r"(?:unfortunately,? |regrettably,? |(?:(?:i|we)(?:'m| am|'re| are) )?sorry,? (?:but )?|my apologies[,.]? (?:but )?)?"
    r"(?:(?:i|we) (?:cannot|can not|can't|could not|couldn't|won't|will not|(?:must|have to) (?:decline|refuse)|do not feel comfortable|don't feel comfortable"
    r"|apologi[sz]e)\b"
    r"|(?:i(?:'m| am)|we(?:'re| are)) (?:very |really |so )?(?:sorry|afraid|unable|not able|not allowed|not comfortable)\b"
    r"|as an? (?:[a-z-]+ ){0,2}(?:ai|language model|virtual assistant)\b|(?:my )?apologies[,.!]|sorry(?:[,.!]|\Z)"
    r"|(?:unable|not able) to\b|(?:cannot|can't) (?:describe|determine|help|identify|process|see|view)\b"
    r"|i(?:'m| am) (?:just |only )?an? (?:[a-z-]+ ){0,2}(?:ai|language model)\b"
    r"|(?:this|the|your) (?:content|prompt|request) (?:(?:may|might|appears to|seems to|was|is|has been) ){0,2}(?:violate|blocked|declined|flagged|rejected)"
    # These come from models to which the server does not pass the image on, and from servers that cannot load it.
    r"|i (?:do|did)(?: not|n't) (?:actually )?(?:see|have|receive)\b.{0,40}\bimages?\b|i have no image\b|i(?:'m| am) not seeing\b"
    r"|i(?:'d| would) be (?:happy|glad) to\b|how (?:can|may) i (?:assist|help)\b"
    r"|(?:it (?:seems|appears|looks like)(?: that)? )?(?:there(?:'s| is| was) no image|no image (?:is|was|has been|provided|attached))\b"
    r"|(?:it (?:seems|appears|looks like)(?: that)? )?you (?:have not|haven't|did not|didn't) (?:actually )?(?:attach|include|provide|send|sent|share|upload)"
    r"|(?:(?:could|can) you )?please (?:provide|upload|share|attach|send)\b.{0,40}\bimages?\b"
    rf"|{_NO_IMAGE})",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\W*(?:"
    + "|".join(
        (
            r"(?:es )?tut mir (?:sehr )?leid|entschuldigung\b|leider (?:kann|darf|ist es mir) |(?:dabei |hier)?(?:kann|darf) ich .{0,80}\b(?:nicht|keine)\b",
            r"ich (?:kann|darf|werde) .{0,80}\b(?:nicht|keine)\b|ich bin nicht in der lage|als (?:ki|sprachmodell)\b",
            r"(?:je suis )?(?:vraiment )?désolée?\b|je (?:ne )?(?:peux|puis) pas|je ne suis pas (?:en mesure|capable)|je regrette|je m'excuse|en tant qu['e]"
            r"|malheureusement,? je",
            r"lo (?:siento|lamento)|no puedo|no me es posible|lamento|lamentablemente|perdón\b|(?:mis )?disculpas?\b|como (?:un )?(?:modelo|ia\b|asistente)",
            r"desculpe|(?:eu )?(?:sinto muito|lamento)|(?:eu )?não (?:posso|consigo|sou capaz)|infelizmente",
            r"mi dispiace|(?:io )?non (?:posso|riesco|sono in grado)|spiacente|purtroppo|come (?:modello|assistente|ia\b)",
            r"het spijt me|helaas|ik kan .{0,80}\b(?:niet|geen)\b|als (?:ai|taalmodel)\b",
            r"tyvärr|jag (?:kan|får) (?:inte|tyvärr)|beklager|desværre|dessverre|jeg (?:kan|må) (?:ikke|desværre|dessverre)|jeg beklager",
            r"valitettavasti|pahoittelen|en (?:voi|pysty)\b|olen pahoillani",
            r"przykro mi|przepraszam|niestety|nie mogę|nie jestem w stanie|omlouvám se|je mi líto|bohužel|nemohu|nemůžu|sajnálom|sajnos|elnézést",
            r"îmi pare rău|din păcate|nu pot\b|λυπάμαι|συγγνώμη|δυστυχώς|δεν μπορώ",
            r"извините|простите|прошу прощения|к сожалению|мне (?:очень )?жаль|(?:я )?не могу|(?:я )?не (?:в состоянии|имею возможности)|как (?:ии|языковая)",
            r"вибачте|пробачте|на жаль|(?:я )?не можу",
            r"(?:çok )?üzgünüm|maalesef|ne yazık ki|özür dilerim",
            r"(?:(?:我)?(?:很|非常|十分|深感)?(?:抱歉|遗憾|遺憾))|对不起|對不起|不好意思|我(?:无法|無法|不能|没办法|沒辦法)|(?:无法|無法)|作为(?:一个|一名)?(?:ai|人工智能|语言模型)"
            r"|作為(?:一個|一名)?(?:ai|人工智慧|語言模型)",
            r"(?:大変|誠に)?(?:申し訳|恐れ入ります|恐縮です)|す[みい]ません|ごめんなさい|残念(?:ながら|ですが)|その(?:リクエスト|ご要望)",
            r"(?:정말 |대단히 )?(?:죄송|미안|유감)|안타깝게도|(?:저는 )?.{0,40}(?:할|드릴|도와드릴) 수 (?:없|가 없)",
            r"(?:أنا )?(?:آسف|اسف)|عذر[اًا]*|أعتذر|معذرة|للأسف|لا (?:أستطيع|يمكنني)|متأسفم|متاسفم|متأسفانه|ببخشید|نمی[\u200c ]?توانم",
            r"מצטער|סליחה|לצערי|אני לא (?:יכול|יכולה)|איני יכול",
            r"क्षमा|माफ़|माफ|मुझे (?:खेद|अफ़सोस)|खेद है|मैं .{0,80}(?:नहीं|असमर्थ)|দুঃখিত|আমি দুঃখিত|மன்னிக்கவும்",
            r"xin lỗi|(?:tôi )?rất tiếc|tôi (?:không thể|xin lỗi)|maaf|mohon maaf|saya tidak (?:dapat|bisa|boleh)|ขออภัย|ขอโทษ|(?:ฉัน|ผม)ไม่สามารถ",
        )
    )
    + ")",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a reply begins like a refusal: with an apology, or with a statement that the model cannot or may not do it."""
    plain = text.replace("’", "'")
    return bool(_ENGLISH.match(plain) or _OTHERS.match(plain))
