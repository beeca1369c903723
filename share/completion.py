"""Completion for a shell, out of the command's own parser: python share/completion.py bash|zsh|fish >FILE

What a shell needs is shtab's affair. Added here: the values of a choice, which files an argument may be, and the words
of -o.
"""

import argparse
import sys
from collections.abc import Sequence

import shtab

from passthrough.cli import parser
from passthrough.export_options import EXPORT_OPTIONS
from passthrough.option_rows import Option
from passthrough.options import OPTIONS

SHELLS = ("bash", "zsh", "fish")
_DIRECTORIES = frozenset({"SRC", "MNT", "DIR"})
_FILES = frozenset({"IMAGE", "FILE", "PATH"})
_ROWS = {"mount": OPTIONS, "export": EXPORT_OPTIONS}


def values(option: Option) -> Sequence[str]:
    """The values of a choice, out of the line that refuses another; none where it is no choice."""
    if option.parse is None:
        return ()
    try:
        option.parse("\0")
    except ValueError as error:
        text = str(error)
        return text.removeprefix("one of ").split(", ") if text.startswith("one of ") else ()
    return ()


def _words(command: str) -> str:
    """What may stand after -o, a choice with each of its values."""
    words = []
    for option in _ROWS[command]:
        found = values(option)
        words += [f"{option.word}={value}" for value in found]
        if not found:
            words.append(option.word + ("=" if option.parse else ""))
    return " ".join(words)


def _bash_words(command: str) -> str:
    return f"""_passthrough_{command}_words() {{
  local before=""
  [[ $1 == *,* ]] && before="${{1%,*}},"
  compgen -P "$before" -W "{_words(command)}" -- "${{1##*,}}"
}}"""


def _fish_words(command: str) -> str:
    return f"""function _passthrough_{command}_words
  set -l before (string match -r '^.*,' -- (commandline -ct))
  printf '%s\\n' "$before"{{{_words(command).replace(" ", ",")}}}
end"""


_BASH_WHOLE = """
# bash takes words apart at each = (COMP_WORDBREAKS): --option=value becomes two words again, and what follows -o one.
_passthrough() {
  local -a words=()
  local word before=""
  for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
    if [[ $before == = ]]; then
      if [[ ${words[-1]} == --* ]]; then words+=("$word"); else words[-1]+="=$word"; fi
    elif [[ $word != = ]]; then
      words+=("$word")
    fi
    before=$word
  done
  if [[ $before == = ]]; then
    if [[ ${words[-1]} == --* ]]; then words+=(""); else words[-1]+="="; fi
  fi
  local last=${words[-1]}
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$((${#words[@]} - 1))
  _shtab_passthrough passthrough "$last" "${words[-2]}"
  if [[ $last == *=* && $last != --* ]]; then COMPREPLY=("${COMPREPLY[@]#"${last%=*}="}"); fi
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o bashdefault -F _passthrough passthrough
"""


def _zsh_words(command: str) -> str:
    words = []
    for option in _ROWS[command]:
        end = f":{option.metavar}:({' '.join(values(option))})" if option.parse else ""
        words.append(f"    '{option.word}{end}'")
    return f"_passthrough_{command}_words() {{\n  _values -s , option \\\n" + " \\\n".join(words) + "\n}"


def _prepare(command: str, chosen: argparse.ArgumentParser, rows: dict[str, Option]) -> None:
    for action in chosen._actions:
        action.option_strings = [text for text in action.option_strings if "_" not in text]
        name = action.metavar if isinstance(action.metavar, str) else ""
        option = rows.get(action.dest)
        if "-o" in action.option_strings:
            words = f"_passthrough_{command}_words"
            action.complete = {"bash": words, "zsh": words, "fish": f"({words})"}  # type: ignore[attr-defined]
        elif option is not None and action.nargs != 0 and values(option):
            action.choices = values(option)
        elif name in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif name in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def script(shell: str) -> str:
    """The whole of it."""
    whole = parser.build()
    (commands,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    rows = {option.field: option for option in (*EXPORT_OPTIONS, *OPTIONS)}
    for command, chosen in commands.choices.items():
        own = {option.word: option for option in _ROWS.get(command, ())}
        _prepare(command, chosen, {**rows, **own})
    preamble = {
        "bash": "\n".join(map(_bash_words, _ROWS)),
        "zsh": "\n".join(map(_zsh_words, _ROWS)),
        "fish": "\n".join(map(_fish_words, _ROWS)),
    }
    made = str(shtab.complete(whole, shell, preamble=preamble))
    if shell == "bash":
        made = made[: made.rindex("complete -o bashdefault")].rstrip() + "\n" + _BASH_WHOLE
    return made.rstrip()


if __name__ == "__main__":
    print(script(sys.argv[1]))
