"""Say how to install the package that a module needs, when its import fails.

Owns the message. The module names its package and how to get it.
"""

from __future__ import annotations

from types import TracebackType


class Needs:
    """Turn the failure of the imports in a block into an error that says what to install.

    The error is a ``ModuleNotFoundError`` as before, with the name of the missing module.

    :param module: the module that imports.
    :param install: what pip installs, such as ``memifrt[gevent]``.
    """

    def __init__(self, module: str, install: str) -> None:
        self._module = module
        self._install = install

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A module of memifrt that is missing is no package to install.
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "memifrt":
            raise ModuleNotFoundError(
                f"{self._module} needs {error.name}, which is not installed: pip install '{self._install}'",
                name=error.name,
                path=error.path,
            ) from None
