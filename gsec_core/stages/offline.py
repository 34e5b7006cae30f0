"""Describing without a server: writes requests to a file in OpenAI's batch format, as `vllm run-batch` reads it, and imports the replies into the log.

Imported answers are as final as those of a server, but each image is asked about once only: a reply outside the template is kept as free text.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from gsec_core.captioners import Answer, Subject
from gsec_core.captioners.openai import OpenAICaptioner
from gsec_core.captioners.servers import DECLINING, reply_of
from gsec_core.captioners.template import excerpt, failed
from gsec_core.errors import Refused
from gsec_core.sources.base import MissingImage, RejectedImage
from gsec_core.stages.base import Context
from gsec_core.stages.describe import Commits, answers, captions_log, loaded_captioner, row_of, subjects, unanswered

_AT_ONCE = 256
"""Number of images whose requests are in memory at the same time."""


def export(context: Context, file: Path) -> dict[str, int]:
    """Write a line with a request for every image that a run would ask about. Images that cannot be decoded are logged as failed.

    Returns the numbers of ``requests``, ``failed`` and ``missing`` images. Raises Refused if the captioner is not an openai:MODEL, or if the file
    cannot be written.
    """
    captioner = _captioner(context)
    log = captions_log(context)
    counts: Counter[str] = Counter(requests=0, failed=0, missing=0)
    commits = Commits(log, context.config.describe)
    todo = subjects(context, unanswered(context))
    temporary = file.parent / f".gsec-batch-{uuid4().hex}"
    try:
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
        with temporary.open("w", encoding="utf-8") as out, ThreadPoolExecutor() as readers:
            while some := list(islice(todo, _AT_ONCE)):
                for subject, body in zip(some, readers.map(lambda one: _body(captioner, one), some), strict=True):
                    if isinstance(body, dict):
                        line = {"custom_id": f"{log.request}-{subject.content_hash.hex()}", "method": "POST", "url": "/v1/chat/completions", "body": body}
                        out.write(json.dumps(line) + "\n")
                        counts["requests"] += 1
                    elif body is None:
                        counts["missing"] += 1
                    else:
                        commits.add(row_of(subject.content_hash, body))
                        counts["failed"] += 1
        os.replace(temporary, file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise Refused(f"--export-batch {file}: cannot be written ({error.strerror or error}).") from None
    finally:
        commits.commit()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return dict(counts)


def import_(context: Context, file: Path) -> dict[str, int]:
    """Put the replies of a batch into the log.

    Returns the numbers of ``answers``; ``failed`` ones among these; ``known`` ones that the log had already; ``unanswered`` lines, whose request failed for a
    temporary reason; and ``foreign`` lines, which do not reply to this run's question. Raises Refused if there is no such file, if a line is not JSON (lines
    before it are imported), or if no line belongs to this run.
    """
    captioner = _captioner(context)
    log = captions_log(context)
    wanted = {key.hex() for key in unanswered(context)}
    known = {key.hex(): row for key, row in answers(context).items()}
    counts: Counter[str] = Counter(answers=0, failed=0, known=0, unanswered=0, foreign=0)
    commits = Commits(log, context.config.describe)
    declined: dict[str, str] = {}

    def take(key: str, answer: Answer) -> None:
        wanted.discard(key)
        declined.pop(key, None)
        # A batch does not tell how long a reply took.
        commits.add({**row_of(bytes.fromhex(key), answer), "seconds": None})
        counts["answers"] += 1
        counts["failed"] += answer.text is None

    answering = any(row["text"] is not None for row in known.values())
    try:
        for line in _lines(file):
            request, _, key = str(line.get("custom_id")).partition("-")
            if request != log.request or not re.fullmatch("[0-9a-f]{32}", key):
                counts["foreign"] += 1
                continue
            if key not in wanted:
                counts["known"] += 1
                continue
            response = line.get("response")
            status = response.get("status_code") if isinstance(response, dict) else None
            if isinstance(status, int) and status in DECLINING:
                declined[key] = f"{status}: {_message(line)}"
                continue
            answer = _answer(captioner, response["body"]) if isinstance(response, dict) and status == 200 and "body" in response else None
            if answer is None:
                counts["unanswered"] += 1
            else:
                answering = answering or answer.text is not None
                take(key, answer)
    finally:
        for key, reason in sorted(declined.items()):
            if answering:  # if no request is answered, the server and not the request may be at fault
                take(key, failed(reason))
            else:
                counts["unanswered"] += 1
        commits.commit()
    if not sum(counts[kind] for kind in ("answers", "known", "unanswered")):
        raise Refused(f"--import-batch {file}: none of its {counts['foreign']} lines answers a request of run {context.run.id}. Export its batch first.")
    return dict(counts)


def _captioner(context: Context) -> OpenAICaptioner:
    captioner = loaded_captioner(context.config)
    if not isinstance(captioner, OpenAICaptioner):
        raise Refused(f"describe.captioner = {context.config.describe.captioner}: only requests to a model can be written to a file. Name an openai:MODEL.")
    return captioner


def _body(captioner: OpenAICaptioner, subject: Subject) -> dict[str, Any] | Answer | None:
    """The body of a request; a failed Answer if the image cannot be decoded; None if the image is gone."""
    try:
        return captioner.request(subject)
    except RejectedImage as error:
        return failed(str(error))
    except MissingImage:
        return None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise Refused(f"--import-batch {file}: line {number} is not JSON ({error}). Lines before it are imported; a repeat skips them.") from None
                if not isinstance(found, dict):
                    raise Refused(f"--import-batch {file}: line {number} is not a JSON object. Lines before it are imported; a repeat skips them.")
                yield found
    except OSError as error:
        raise Refused(f"--import-batch {file}: cannot be read ({error}).") from None


def _answer(captioner: OpenAICaptioner, body: object) -> Answer | None:
    try:
        return captioner.read(reply_of(body))
    except ValueError:  # a body of another form
        return None


def _message(line: dict[str, Any]) -> str:
    found: Any = line.get("error") or line.get("response")
    for name in ("body", "error", "message"):
        if isinstance(found, dict) and found.get(name) is not None:
            found = found[name]
    return excerpt(str(found))
