"""A walk through the parts of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Kind = TypeVar("Kind")


class Part:
    """What holds weights, or parts that do, as attributes or in lists that are attributes."""

    __slots__: tuple[str, ...] = ()

    def _children(self) -> Iterable[object]:
        return vars(self).values() if hasattr(self, "__dict__") else [getattr(self, name) for name in self.__slots__]

    def walk(self, kind: type[Kind]) -> Iterator[Kind]:
        """Every ``kind`` at or below this part, in the order of declaration; what several parts share comes once."""
        seen: set[int] = set()
        pending: list[object] = [self]
        while pending:
            item = pending.pop()
            if isinstance(item, list):
                pending.extend(reversed(item))
            elif isinstance(item, kind | Part) and id(item) not in seen:
                seen.add(id(item))
                if isinstance(item, kind):
                    yield item
                if isinstance(item, Part):
                    pending.extend(reversed(list(item._children())))
