"""The terminal on which the operator of a `warmlane up` reads."""

from rich.console import Console


class Screen:
    """The terminal of the operator."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Prints *text*, in rich's markup."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def offer(self, lines: str) -> None:
        """Prints *lines* as they are, to be pasted into a shell."""
        self._console.print(lines, markup=False, highlight=False, soft_wrap=True)
