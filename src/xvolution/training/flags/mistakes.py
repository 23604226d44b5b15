"""Error messages for a wrong command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from xvolution.training.flags.flag import flag_of
from xvolution.training.flags.values import choices_of, in_words

_WRONG_VALUE = re.compile(r'Parser key "(?P<dest>[^"]+)"(?: element \d+)?:.*(?:Got|Given) value: (?P<value>.*)', re.S)
_WRONG_CHOICE = re.compile(r"argument (?P<name>\S+): invalid choice: (?P<value>.+?) \(choose from", re.S)
_NO_VALUE = re.compile(r"argument (?P<name>\S+): expected (one|at least one) argument")
_NEEDLESS_VALUE = re.compile(r"argument (?P<name>\S+): ignored explicit argument")
_MISSING = re.compile(r"the following arguments are required: (?P<names>.*)")
_TOO_MANY = re.compile(r"unrecognized arguments: (?P<first>\S+)")
_UNKNOWN_SETTING = re.compile(r"(?:Option|Key) ['\"](?P<name>[^'\"]+)['\"] is not (?:accepted|expected)")
_NO_FILE = re.compile(r'Parser key "(?P<dest>[^"]+)":.*File does not exist: \'?(?P<path>[^\n\']*)', re.S)
_NO_YAML = re.compile(r"Problems parsing config: (?P<reason>[^\n]*)")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"``, or an empty text if there is no similar name."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else "."


def unknown_flag(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    """A sentence about the first flag that the parser does not know, if there is one."""
    known = [name for name in parser._option_string_actions if not name.endswith("+")]
    for argument in arguments:
        if argument == "--":
            break
        name = argument.partition("=")[0]
        if not name.startswith("--") or name in parser._option_string_actions or name.partition(".")[0] in known:
            continue
        return f"there is no flag {name}{did_you_mean(name, known)} {parser.prog} --help-all lists the flags."
    return None


def sentence(parser: argparse.ArgumentParser, message: str) -> str:
    """A parser's message as a sentence for the user."""
    actions = {action.dest: action for action in parser._actions}
    if found := _NO_FILE.search(message):
        return f"there is no file {found['path']}, which {flag_of(found['dest'])} names."
    if (found := _WRONG_VALUE.search(message)) and (action := actions.get(found["dest"])) is not None:
        return _wrong_value(action, found["value"].strip())
    for pattern, answer in ((_WRONG_CHOICE, _wrong_value), (_NO_VALUE, _no_value), (_NEEDLESS_VALUE, _needless_value)):
        if found := pattern.search(message):
            action = _named(parser, found["name"])
            if action is not None:
                return answer(action, found.groupdict().get("value", "").strip("'\""))
    if found := _MISSING.search(message):
        missing = [_name(actions[name]) if name in actions else name for name in found["names"].split(", ")]
        return (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {parser.format_usage().strip()}."
        )
    if found := _TOO_MANY.search(message):
        return f"there is one argument too many, {found['first']!r}; {parser.format_usage().strip()}."
    if found := _UNKNOWN_SETTING.search(message):
        near = did_you_mean(found["name"], [action.dest for action in parser._actions])
        return f"--config has the setting {found['name']!r}, which {parser.prog} does not have{near}"
    if found := _NO_YAML.search(message):
        return f"the file of --config is not valid YAML: {found['reason']}."
    return " ".join(message.split()).rstrip(".") + "."


def _named(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    for action in parser._actions:
        if name in (action.dest, action.metavar, "/".join(action.option_strings), *action.option_strings):
            return action
    return None


def _name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def _wrong_value(action: argparse.Action, value: str) -> str:
    choices = choices_of(action)
    near = get_close_matches(value, choices, n=1, cutoff=0.7)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"{_name(action)} is {value or 'empty'}; it must be {in_words(action)}.{meant}"


def _no_value(action: argparse.Action, value: str) -> str:
    return f"{_name(action)} needs a value: {in_words(action)}."


def _needless_value(action: argparse.Action, value: str) -> str:
    return f"{_name(action)} takes no value; give {' or '.join(action.option_strings)}."
