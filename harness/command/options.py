"""``--help``: every option with its meaning, every group with its members, read from the YAML's comments.

Nothing is imported for it and nothing composed: what the files say is shown, those of chosen members
(``--help method=quantease``) in the place of the default ones.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from harness.command.programs import OWN_CONF, own_folder, program

INTRODUCTION = """\
A benchmark harness for layer-wise post-training quantisation of language models.

  {program} method=gptq bits=3 qep.alpha=0.5                     one run
  {program} -m method=gptq,rtn bits=2,3,4 qep.alpha=0,0.5,1      a sweep: every combination
  {program} --help method=quantease eval=local                   the options of other members
  {program} {conf} FOLDER method=mine                  members of your own, FOLDER/method/mine.yaml
  {program} inspect results/local/RUN                            what a run did to the model
  {program} --wide ...                                           all columns in the table at the end
  eval "$(qep-bench --shell-completion install=bash)"           completes options; zsh, fish

Exit codes: 0 all done, 1 some run failed, 2 the configuration can't run, 130 interrupted.
"""
CONFIG = "config.yaml"
WHOLE = "# @package _global_"  # of a file whose keys are whole names
# No options: how files are composed, what they are made of.
ASIDE = ("defaults", "hydra", "evaluators")
PLAIN = 100  # characters of a line where nobody's terminal says
KEY = re.compile(r"^( *)(?:- )?(\w+):(?: +(.*?))??(?: +# (.*))?$")


@dataclass(frozen=True)
class Option:
    """A key's default and meaning, as its file has them."""

    value: str
    meaning: str


def overview(conf: Path, words: Sequence[str]) -> int:
    """Prints all that can be set; 2 where a chosen member does not exist."""
    try:
        own, words = own_folder(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folders = [conf, *([own] if own else [])]
    chosen = dict(defaults(conf / CONFIG))
    known_groups = groups(folders)
    for word in words:
        group, _, option = word.partition("=")
        if group in known_groups:
            chosen[group] = option
    print(INTRODUCTION.format(program=program(), conf=OWN_CONF))
    print("Groups (GROUP=MEMBER; the default has a star)\n")
    for group in known_groups:
        print(f"{group}")
        told = {
            f"{'*' if chosen.get(group) == name else ' '} {name}": note(path)
            for name, path in members(folders, group).items()
        }
        show(told)
    common = options(conf / CONFIG)
    print("Options (KEY=VALUE; default, meaning)\n")
    show(lines(common))
    for group, option in chosen.items():
        known = members(folders, group)
        if option in ("null", "own"):  # nothing, or what the method says
            continue
        if option not in known:
            print(f"error: {group}={option}: allowed are {', '.join(known)}", file=sys.stderr)
            return 2
        if found := of_member(known, option, group, common):
            print(f"Of {group}={option}\n")
            show(lines(found))
    return 0


def defaults(path: Path) -> Iterator[tuple[str, str]]:
    """The groups of a defaults list and what is chosen of each."""
    text = path.read_text(encoding="utf-8").partition("defaults:\n")[2]
    for line in text.splitlines():
        if not line.startswith("  - "):
            return
        if found := re.fullmatch(r"  - (\w+): (\w+)", line):
            yield found[1], found[2]


def groups(folders: Sequence[Path]) -> list[str]:
    """All groups, in the folders' order."""
    found = (
        path.parent.relative_to(folder).as_posix()
        for folder in folders
        for path in sorted(folder.glob("*/**/*.yaml"))
    )
    return list(dict.fromkeys(found))


def members(folders: Sequence[Path], group: str) -> dict[str, Path]:
    """The files of a group by their names."""
    return {path.stem: path for one in folders for path in sorted((one / group).glob("*.yaml"))}


def note(path: Path) -> str:
    """What a member is: the first sentence of the comment on top of its file, its command apart."""
    said = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# "))
    text = " ".join(one for one in said if not re.match(r"@package|.*python run\.py", one))
    text = re.sub(r"^\w+=\S+(?: \S+=\S+)*: +", "", text)
    first = re.split(r"(?<!\bal)(?<=[\w)])[.] +(?=[A-Z]|$)", f"{text} ")[0].strip()
    where = options(path).get("path")
    return f"{first} ({where.value})" if where and where.value != "???" else first


def of_member(
    known: Mapping[str, Path], option: str, group: str, common: Mapping[str, Option]
) -> dict[str, Option]:
    """The options of a member by their whole names.

    A key that its file says nothing of means what it means to the group's other members.
    """
    if WHOLE in known[option].read_text(encoding="utf-8").splitlines():
        meant, prefix = dict(common), ""
        for beside in known.values():
            meant |= {f"{group}.{key}": one for key, one in options(beside).items() if one.meaning}
    else:
        meant, prefix = {}, f"{group.replace('/', '.')}."
        for beside in reversed(list(known.values())):
            meant |= {f"{prefix}{k}": one for k, one in options(beside).items() if one.meaning}
    found = {f"{prefix}{key}": one for key, one in composed(known, known[option]).items()}
    return {
        key: Option(one.value, one.meaning or (meant[key].meaning if key in meant else ""))
        for key, one in found.items()
    }


def composed(known: Mapping[str, Path], path: Path) -> dict[str, Option]:
    """The options of a member, those of the members that it builds on included."""
    found: dict[str, Option] = {}
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"^  - (\w+)$", text, re.MULTILINE):
        if name in known and name != path.stem:
            found |= composed(known, known[name])
    for key, option in options(path).items():
        meaning = option.meaning or (found[key].meaning if key in found else "")
        found[key] = Option(option.value, meaning)
    return found


def options(path: Path) -> dict[str, Option]:
    """The keys of a file with dots, each with the rest of its line."""
    found: dict[str, Option] = {}
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        read = KEY.match(line)
        if read is None:
            continue
        depth, key, value, meaning = len(read[1]), read[2], read[3] or "", read[4] or ""
        above = [one for one in above if one[0] < depth]
        names = [*(name for _, name in above), key]
        if not value:
            above.append((depth, key))
        elif names[0] not in ASIDE and key != "_target_":
            found[".".join(names)] = Option(value, meaning)
    return found


def lines(found: Mapping[str, Option], prefix: str = "") -> dict[str, str]:
    """Options as they are shown: what to type, and what it means."""
    return {f"{prefix}{key}={one.value}": one.meaning for key, one in found.items()}


def show(told: Mapping[str, str]) -> None:
    """Prints names with their meanings beside them; below them where a name is long."""
    width = shutil.get_terminal_size((PLAIN, 0)).columns
    column = min(34, 2 + max(map(len, told), default=0))
    for name, meaning in told.items():
        parts = wrap(meaning, max(24, width - column - 4)) or [""]
        if len(name) > column - 2:
            print(f"  {name}")
            name = ""
        for part in parts:
            print(f"  {name:<{column}}{part}".rstrip())
            name = ""
    print()
