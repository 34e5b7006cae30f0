"""vocabulary: embeds every word of a vocabulary as a unit vector in the space shared by images and texts.

Writes `vocabulary`, one shard for every 4,096 words. The table does not depend on the corpus: all corpora of a store that use the same words, prompts
and encoder share it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.config import PipelineConfig
from gsec_core.encoders import check_texts, encoder_identity
from gsec_core.errors import Refused
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import VOCABULARY_TABLE, vocabulary_schema
from gsec_core.text.vocabulary import PROMPT, PROMPTS, Vocabulary, check_prompts, load_vocabulary, prompted

SHARD_WORDS = 4096

_BATCH_WORDS = 256
"""Number of words that are encoded between two progress reports."""


def words_of(config: PipelineConfig) -> Vocabulary:
    """The vocabulary that the settings name. Raises Refused naming the setting that is wrong."""
    return load_vocabulary(config.text.vocabulary)


def prompts_of(config: PipelineConfig) -> tuple[str, ...]:
    """The prompts of the settings. Raises Refused for one without a place for the word."""
    if config.text.prompts is None:
        return (PROMPT,) if config.encode.encoder == "lite" else PROMPTS
    prompts = tuple(prompt.strip() for prompt in config.text.prompts.split("|"))
    check_prompts(prompts)
    return prompts


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Embed the words of the named shards."""
    words, prompts = words_of(context.config).words, prompts_of(context.config)
    encoder = encode.STAGE.load(context.config)
    for name, numbers in _shards(context).items():
        if name not in names:
            continue
        here = words[numbers.start : numbers.stop]
        found = []
        for start in range(0, len(here), _BATCH_WORDS):
            batch = here[start : start + _BATCH_WORDS]
            found.append(embedded(encoder, [prompted(word, prompts) for word in batch]))
            progress(len(batch))
        vectors = np.concatenate(found)
        if not np.isfinite(vectors).all():
            raise Refused(
                f"encode.encoder = {context.config.encode.encoder}: its vectors of texts are not finite. Use another encoder, or encode.precision = fp32."
            )
        columns = [np.array(numbers), pa.array(here), vectors.astype(np.float16)]
        yield Finished(name, (make_table(columns, vocabulary_schema(vectors.shape[1])),), {"words": len(here)})


def embedded(encoder: Any, texts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """The unit vector of each word: the normalised mean of the unit vectors of its texts."""
    vectors = encoder.encode_texts([text for of_word in texts for text in of_word])
    starts = np.cumsum([0, *(len(of_word) for of_word in texts[:-1])])
    return unit_rows(np.add.reduceat(vectors, starts, axis=0))


@once
def load_words(context: Context) -> tuple[list[str], NDArray[np.float16]]:
    """All words and their vectors (words, joint_dim), in memory."""
    tables = context.shards(STAGE, VOCABULARY_TABLE).read_all(_shards(context), ["word", "embedding"])
    words = [word for table in tables for word in table["word"].to_pylist()]
    return words, np.concatenate([to_matrix(table, "embedding") for table in tables])


def _shards(context: Context) -> dict[str, range]:
    """Names of the shards, each with the numbers of its words."""
    total = len(words_of(context.config).words)
    return {f"words-{number:05d}": range(first, min(first + SHARD_WORDS, total)) for number, first in enumerate(range(0, total, SHARD_WORDS))}


def _settings(config: PipelineConfig) -> dict[str, Any]:
    check_texts(config.encode.encoder)
    encoder = {"encoder": encoder_identity(config.encode.encoder), "precision": config.encode.precision}
    return {**words_of(config).identity, "prompts": prompts_of(config), **encoder}


def _words(context: Context, names: Sequence[str]) -> int:
    return sum(len(numbers) for name, numbers in _shards(context).items() if name in names)


STAGE = Stage(
    name="vocabulary",
    version=1,
    settings=_settings,
    inputs=lambda context: [],
    steps=(Step((VOCABULARY_TABLE,), work, lambda context: list(_shards(context)), _words, busy=True, unit="words"),),
    shared=True,
    on_device=True,
)
