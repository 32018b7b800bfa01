"""Calls in order of time, thread by thread: what a call made is asked for when it is opened."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from callscope.reports.selection import label
from callscope.reports.text import duration, plural, printable, seconds
from callscope.viewer.terminal.cells import Pane, ShowCall, WalkTo, captured


class Item(NamedTuple):
    """A thread (without a call), a call, or where more of them are: `after`."""

    thread: int
    call: int | None = None
    function: int | None = None
    after: int | None = None


class TreePane(Pane):
    """The tree of calls."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("d", "details", "Details"), Binding("g", "graph", "Call graph")]

    def compose(self) -> ComposeResult:
        """One tree, whose outermost nodes are threads."""
        tree: Tree[Item] = Tree("", id="tree")
        tree.show_root = False
        tree.auto_expand = False
        yield tree

    def on_mount(self) -> None:
        """Show the threads; of a single one, its calls."""
        tree = self._tree
        busy = [row for row in self.view.summary["threads"] if row["calls"]]
        for row in busy:
            title = Text(printable(f"{row['name'] or 'thread'} {row['tid']}"), "bold")
            title.append(f"  process {row['pid']}, {plural(row['calls'], 'call')}", "not bold dim")
            tree.root.add(title, Item(row["thread"]))
        tree.root.expand()
        tree.cursor_line = 0
        if len(busy) == 1:
            tree.root.children[0].expand()

    @property
    def _tree(self) -> Tree[Item]:
        return self.query_one("#tree", Tree)

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Item]) -> None:
        """Ask for what a node holds, once."""
        item = event.node.data
        if item is not None and not event.node.children:
            self._load(event.node, item)

    def on_tree_node_selected(self, event: Tree.NodeSelected[Item]) -> None:
        """Enter: open and close; load more."""
        node, item = event.node, event.node.data
        if item is None:
            return
        if item.after is not None and node.parent is not None:
            self._load(node.parent, item, node)
        elif node.allow_expand:
            node.toggle()
        else:
            self.action_details()

    @work(group="tree")
    async def _load(self, node: TreeNode[Item], item: Item, instead: TreeNode[Item] | None = None) -> None:
        found = await self.ask(self.answers.children, item.thread, item.call, item.after)
        if found is None or (instead is None and node.children):
            return
        if instead is not None:
            instead.remove()
        last: TreeNode[Item] | None = None
        for row in found["calls"]:
            own = Item(item.thread, row["call_id"], row["function_id"])
            last = node.add(self._title(row), own, allow_expand=row["order_span"] > 1)
        if found["next"] is not None:
            node.add_leaf(Text("... more: Enter", "dim"), Item(item.thread, item.call, after=found["next"]))
        if instead is not None and last is not None:
            self._tree.move_cursor(node.children[-1] if found["next"] is not None else last)

    def _title(self, row: dict[str, Any]) -> Text:
        title = Text("" if row["order_span"] > 1 else "  ", no_wrap=True)  # where others have their arrow
        if row["duration_ns"] is not None:
            title.append(f"{seconds(row['start_ns'])} ", "dim")
            title.append(f"{duration(row['duration_ns'])}  ")
        module = None if row["module"] == self.view.own_module else row["module"]
        if row["via"]:
            title.append(f"[{printable(row['via'])}] ", "dim")
        title.append(printable(label(row["function"] or "?", module)), "bold")
        title.append(printable(captured(row)))
        if row["ended_by"] != "return":
            title.append(f"  {row['ended_by'].replace('_', ' ')}", "yellow")
        return title

    def _chosen(self) -> Item | None:
        node = self._tree.cursor_node
        return node.data if node is not None else None

    def action_details(self) -> None:
        """Show the call's arguments, callers and source."""
        item = self._chosen()
        if item is not None and item.call is not None and item.after is None:
            self.post_message(ShowCall(item.call))

    def action_graph(self) -> None:
        """Show the call's function in the call graph."""
        item = self._chosen()
        if item is not None and item.function is not None:
            self.post_message(WalkTo(item.function))
