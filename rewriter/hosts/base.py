"""What every host shares: the expressions of a model, who reads whom, and where each one came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from runtime_ops.words import Expr


class Unfit(Exception):  # noqa: N818 - becomes the reason of a decline
    """A node that no row spells out, and why."""


class Graphs(ABC):
    """A model as expressions of the alphabet; a host fills it by binding every value that it reads.

    Attributes:
        exprs: expression of every value, by its handle.
        users: expressions that take an expression as argument, by its id.
        outputs: ids of the expressions that leave a graph.
    """

    def __init__(self) -> None:
        self.exprs: dict[Any, Expr] = {}
        self.users: dict[int, list[Expr]] = {}
        self.outputs: set[int] = set()
        self._linked: dict[int, Expr] = {}
        self._at: Any = None
        self._home: dict[int, Any] = {}

    @abstractmethod
    def title(self, node: Any) -> str:
        """Return the name under which a user finds a node."""

    @abstractmethod
    def inputs(self) -> list[Expr]:
        """Return the inputs that whoever runs the model gives, in order."""

    @abstractmethod
    def survivor(self, node: Any) -> str | None:
        """Return the name of what still reads a node after an edit, None if the node is gone."""

    def beside(self, expr: Expr) -> Mapping[Any, Expr | None]:
        """Return the other outputs in use of the node that gives ``expr``: how they are made, None if not in words."""
        return {}

    def _link(self, expr: Expr) -> None:
        """Note that ``expr`` and what it is made of belong to the node that is being read."""
        stack = [expr]
        while stack:
            node = stack.pop()
            if id(node) in self._linked:
                continue
            self._linked[id(node)] = node
            self._home[id(node)] = self._at
            for arg in node.args:
                self.users.setdefault(id(arg), []).append(node)
                stack.append(arg)

    def readers(self, expr: Expr) -> list[Expr]:
        """Return what uses the elements of ``expr``; uses of its shape alone do not count."""
        return [user for user in self.users.get(id(expr), []) if user.word != "dim"]

    def exprs_of(self, word: str) -> Iterator[Expr]:
        """Yield the expressions that say ``word``, in the order of the graph."""
        return (expr for expr in self._linked.values() if expr.word == word)

    def node_name(self, expr: Expr) -> str:
        """Return the name of the node that ``expr`` was read from, or of its output if it has none."""
        node = self.node(expr)
        name = None if node is None else self.title(node)
        return str(name or getattr(expr.handle, "name", None) or expr.word)

    def node(self, expr: Expr) -> Any:
        """Return the node that ``expr`` was read from."""
        return self._home.get(id(expr))

    def names(self) -> Iterator[str]:
        """Yield the names of all nodes."""
        return (self.title(node) for node in dict.fromkeys(self._home.values()) if node is not None)
