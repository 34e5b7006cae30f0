import json
import subprocess
import sys

import pytest

from gsec_core.captioners import captioner_identity, load_captioner
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused


@pytest.mark.parametrize("name", ["llava", "tagger:1", "tagger:", "openai", "openai:", "table", "table:", ":", "Tagger"])
def test_an_unknown_captioner_is_refused(name: str) -> None:
    for find in (captioner_identity, lambda config: load_captioner(config, device="cpu", threads=1)):
        with pytest.raises(Refused, match=r"describe\.captioner .*`tagger`, `openai:MODEL` and `table:FILE:COLUMN`"):
            find(DescribeConfig(captioner=name))


def test_the_identity_of_a_captioner_is_computed_without_importing_its_framework(tmp_path: object) -> None:
    script = f"""
import sys
from gsec_core.captioners import captioner_identity
from gsec_core.config import DescribeConfig
open({str(tmp_path)!r} + "/x.csv", "w").write("uri,text\\na,b\\n")
for name in ("tagger", "openai:x", "table:" + {str(tmp_path)!r} + "/x.csv"):
    captioner_identity(DescribeConfig(captioner=name))
assert not {{"torch", "openai", "torchvision", "efficientnet_lite_pytorch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_identity_covers_the_model_and_the_request_but_neither_address_nor_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSEC_CAPTIONER_KEY", "sk-secret")
    config = DescribeConfig(captioner="openai:vision:11b", url="http://somewhere:1234/v1")
    identity = captioner_identity(config)
    recorded = json.dumps(identity)
    assert identity["name"] == "openai:vision:11b"
    assert "somewhere" not in recorded
    assert "sk-secret" not in recorded
    assert captioner_identity(config.model_copy(update={"url": "http://elsewhere/v1", "timeout": 5.0, "concurrency": 3})) == identity
    for change in ({"captioner": "openai:other"}, {"max_tokens": 97}, {"image_size": 449}):
        assert captioner_identity(config.model_copy(update=change)) != identity
