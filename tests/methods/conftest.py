from ..clustering.conftest import _one_thread  # noqa: F401 - small problems here too
