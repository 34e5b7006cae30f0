"""A Prefect server for the tests of this folder."""

from collections.abc import Iterator

import pytest

from ..orchestrator import prefect_server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Ends after this folder, since an idle server takes a twentieth of a core."""
    with prefect_server(tmp_path_factory.mktemp("prefect-server")) as url:
        yield url
