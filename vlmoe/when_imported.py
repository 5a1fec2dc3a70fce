"""Do something as soon as another package is imported, without importing it now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(package: str, then: Callable[[], None]) -> None:
    """Call ``then`` right behind the import of ``package``; at once if it is imported already."""
    if package in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watch(package, then))


class _Watch(MetaPathFinder):
    """Leaves the finding to the other finders, and adds a last step to the loading.

    It stays in its place: who asks whether a package is there (``importlib.util.find_spec``, as
    transformers does for PEFT) finds it, too, and imports nothing.
    """

    def __init__(self, package: str, then: Callable[[], None]):
        self.package = package
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.package:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_then(module: ModuleType) -> None:
                execute(module)
                self.then()

            spec.loader.exec_module = execute_and_then  # type: ignore[method-assign]
        return spec
