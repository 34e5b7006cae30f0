import pytest

from .examples import Images, png


@pytest.fixture(scope="session")
def images() -> Images:
    """Small images: path -> bytes, in the order of the paths."""
    names = ["a/1.png", "a/2.png", "b.png", "b/deep/er.png", "ünï code.PNG"]
    return {name: png(40 * grey) for grey, name in enumerate(names)}
