"""describe without a server: a file of requests in OpenAI's batch format, as `vllm run-batch` reads it, and its replies into the log.

What comes in is final as it would be online, but asked once: a reply outside the template is kept as free text.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from gsec_core.captioners import Answer, Subject
from gsec_core.captioners.openai import OpenAICaptioner
from gsec_core.captioners.servers import DECLINING, reply_of
from gsec_core.captioners.template import failed
from gsec_core.errors import Refused
from gsec_core.sources.base import MissingImage, RejectedImage
from gsec_core.stages.base import Context, Progress, silent
from gsec_core.stages.describe import Commits, captions_log, loaded_captioner, row_of, subjects, unanswered

_AT_ONCE = 256
"""Images whose requests are in memory at once."""


def export(context: Context, file: Path, progress: Progress = silent) -> dict[str, int]:
    """Write a line for every image that a run would ask about: ``requests``. Images that cannot be decoded are logged as ``failed``.

    Raises Refused unless a model describes the images.
    """
    captioner = _captioner(context)
    log = captions_log(context)
    counts: Counter[str] = Counter(requests=0, failed=0, missing=0)
    commits = Commits(log, context.config.describe)
    todo = subjects(context, unanswered(context))
    temporary = file.with_name(f".{file.name}-{uuid4().hex}")
    try:
        with temporary.open("w") as out, ThreadPoolExecutor() as readers:
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
                    progress(1)
        os.replace(temporary, file)
    finally:
        commits.commit()
        temporary.unlink(missing_ok=True)
    return dict(counts)


def import_(context: Context, file: Path, progress: Progress = silent) -> dict[str, int]:
    """Put the replies of a batch into the log.

    Counts ``answers``; ``failed``, of these; ``known``, which the log had; ``unanswered``, lines whose request failed for a reason that
    may pass; ``foreign``, lines that are no replies to this run's question. Raises Refused if there is no such file, or it has no line of this run.
    """
    captioner = _captioner(context)
    log = captions_log(context)
    asked = unanswered(context)
    counts: Counter[str] = Counter(answers=0, failed=0, known=0, unanswered=0, foreign=0)
    commits = Commits(log, context.config.describe)
    # A request is to blame for being declined only where others are answered.
    declined: list[tuple[bytes, str]] = []
    try:
        for line in _lines(file):
            progress(1)
            key = _key(line, log.request)
            if key is None:
                counts["foreign"] += 1
            elif key not in asked:
                counts["known"] += 1
            else:
                response = line.get("response") or {}
                status = response.get("status_code")
                if status in DECLINING:
                    declined.append((key, f"{status}: {_message(line)}"))
                    continue
                answer = _answer(captioner, response) if status == 200 else None
                if answer is None:
                    counts["unanswered"] += 1
                    continue
                asked.discard(key)
                commits.add(row_of(key, answer))
                counts["answers"] += 1
                counts["failed"] += answer.text is None
        for key, reason in declined:
            if not counts["answers"]:
                counts["unanswered"] += 1
                continue
            commits.add(row_of(key, failed(reason)))
            counts["answers"] += 1
            counts["failed"] += 1
    finally:
        commits.commit()
    if not sum(counts[kind] for kind in ("answers", "known", "unanswered")):
        raise Refused(f"--import-batch {file}: none of its {counts['foreign']} lines answers a request of run {context.run.id}. Export its batch first.")
    return dict(counts)


def _captioner(context: Context) -> OpenAICaptioner:
    captioner = loaded_captioner(context.config)
    if not isinstance(captioner, OpenAICaptioner):
        raise Refused(f"describe.captioner = {context.config.describe.captioner}: only requests to a model can be written into a file. Name an openai:MODEL.")
    return captioner


def _body(captioner: OpenAICaptioner, subject: Subject) -> dict[str, Any] | Answer | None:
    """A request, what is final without one, or None if the image is gone."""
    try:
        return captioner.request(subject)
    except RejectedImage as error:
        return failed(str(error))
    except MissingImage:
        return None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open() as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found = json.loads(line)
                    if not isinstance(found, dict):
                        raise Refused(f"--import-batch {file}: line {number} is no JSON object.")
                    yield found
    except OSError as error:
        raise Refused(f"--import-batch {file}: cannot be read ({error}).") from None
    except ValueError as error:
        raise Refused(f"--import-batch {file}: line {number} is no JSON ({error}). Lines before it are imported; a repeat skips them.") from None


def _key(line: dict[str, Any], request: str) -> bytes | None:
    ours, _, key = str(line.get("custom_id")).partition("-")
    try:
        return bytes.fromhex(key) if ours == request else None
    except ValueError:
        return None


def _answer(captioner: OpenAICaptioner, response: dict[str, Any]) -> Answer | None:
    try:
        return captioner.read(reply_of(response.get("body")))
    except (ValueError, LookupError):  # a body of another form
        return None


def _message(line: dict[str, Any]) -> str:
    error = line.get("error") or (line.get("response") or {}).get("body") or {}
    inner = error.get("error", error) if isinstance(error, dict) else error
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)
