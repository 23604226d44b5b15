"""The parser of every command, with flags in groups, the most important first, and one sentence for a mistake."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from xvolution.training.errors import InputError
from xvolution.training.flags.flag import Flag, flag_of
from xvolution.training.flags.mistakes import sentence, unknown_flag
from xvolution.training.flags.values import LEGEND, short, shown

#: The groups that flags of every command belong to, in the order of help.
GROUPS = ("comparison", "data", "network", "operator", "recipe", "measurement", "machine", "output")
#: The end of a required flag's help; the parser clears its own mark.
_REQUIRED = " (required)"


class Parser(ArgumentParser):
    """jsonargparse's parser with this library's help.

    Args:
        command: the words after ``xvolution``.
        description: what the command does.
        epilog: text after the flags.

    Raises:
        InputError: raised by `parse_args` for an unknown or missing flag, or a value of another type.
    """

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        self._rare: set[str] = set()
        super().__init__(
            prog=f"xvolution {command}",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            default_env=False,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action=_Help, help="print this.")
        self.add_argument("--help-all", action=_Help, const=True, help="print every flag.")

    def group(self, title: str) -> Any:
        """The group of flags with this title, created if necessary."""
        for group in self._action_groups:
            if group.title == title:
                return group
        return self.add_argument_group(title)

    def add_flag(
        self, group: str, flag: Flag, aliases: Sequence[str] = (), rare: bool = False, **options: Any
    ) -> argparse.Action:
        """Add a flag to a group.

        Args:
            group: its title.
            flag: the flag.
            aliases: further option strings.
            rare: show it only with ``--help-all``.
            options: options of ``add_argument`` instead of the type, such as ``choices``.
        """
        if not options:
            options = {"action": ActionYesNo(no_prefix="no-")} if flag.type is bool else {"type": flag.type}
        text = flag.help.replace("%", "%%") + (_REQUIRED if options.get("required") else "")
        if rare:
            self._rare.add(flag.name)
        return self.group(group).add_argument(flag_of(flag.name), *aliases, default=flag.default, help=text, **options)

    def parse_args(self, args: Sequence[str] | None = None, *further: Any, **options: Any) -> Namespace:  # type: ignore[override]
        if args is not None and not {"-h", "--help", "--help-all"} & set(args):
            wrong = unknown_flag(self, args)
            if wrong is not None:
                raise InputError(wrong)
        return super().parse_args(args, *further, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(sentence(self, message)) from ex

    def format_usage(self) -> str:
        """The command with its required arguments."""
        words = [_invocation(a) for a in self._actions if not a.option_strings or (a.help or "").endswith(_REQUIRED)]
        return " ".join(["usage:", self.prog, *words, "[flags]"]) + "\n"

    def format_help(self, formatter: argparse.HelpFormatter | None = None, everything: bool = False) -> str:
        """The text of ``--help``, or of ``--help-all``."""
        made = self._get_formatter() if formatter is None else formatter
        made.add_text(self.format_usage().strip())
        made.add_text(self.description)
        hidden = 0
        for group in sorted(self._action_groups, key=_place):
            shown_actions = [a for a in group._group_actions if everything or a.dest not in self._rare]
            hidden += len(group._group_actions) - len(shown_actions)
            made.start_section(group.title)
            made.add_arguments(shown_actions)
            made.end_section()
        made.add_text(self.epilog)
        made.add_text(LEGEND)
        if hidden:
            made.add_text(f"{hidden} further flag{'s' if hidden > 1 else ''}: {self.prog} --help-all")
        return made.format_help()


def _place(group: Any) -> tuple[int, int]:
    """Arguments first, then the groups in their order, then those of a task or an operator, then help."""
    if group.title == "positional arguments":
        return 0, 0
    if group.title in GROUPS:
        return 1, GROUPS.index(group.title)
    return (3, 0) if group.title == "options" else (2, 0)


class _Help(argparse.Action):
    """Prints help and exits; ``const`` is whether to print every flag."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: bool = False, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, const=const, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: Any, *parsed: Any) -> None:
        print(parser.format_help(everything=self.const), end="")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Readable types, and a default after every sentence that has none."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(shutil.get_terminal_size().columns - 2, 110)
        super().__init__(prog, max_help_position=32, width=width, **options)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return _invocation(action)

    def _expand_help(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("%%", "%")
        settled = action.default is argparse.SUPPRESS or not action.option_strings or text.endswith(_REQUIRED)
        if settled or (action.default is None and "default" in text):
            return text
        return f"{text} (default: {shown(action.default)})"


def _invocation(action: argparse.Action) -> str:
    """An argument as it is written: its flags and its value."""
    if not action.option_strings:
        return short(action) if action.nargs is None else f"{action.dest.upper()}..."
    names = [name for name in action.option_strings if not name.endswith("+")]
    if isinstance(action, ActionYesNo):
        return f"--[no-]{names[0][2:]}"
    return ", ".join(names) if action.nargs == 0 else f"{', '.join(names)} {short(action)}"
