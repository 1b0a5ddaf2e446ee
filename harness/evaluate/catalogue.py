"""Tasks by name: ours, lm-eval's, those of a folder, and files of questions.

lm-eval itself, which takes a second, is imported where it is needed, and its index of all tasks, which
takes many, is read only where a name is neither ours nor in the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.inputs import assets, texts
from harness.inputs.files import text_hash
from harness.inputs.names import name_of

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Loaded:
    """lm-eval's tasks and groups by name; a group's tasks are among the tasks."""

    tasks: dict[str, ConfigurableTask]
    groups: dict[str, Group]


def own_tasks() -> list[str]:
    """The names of our tasks."""
    return sorted(file.stem for file in TASKS.glob("*.yaml"))


def is_file(task: str) -> bool:
    """Whether a task is a path and not a name."""
    return "/" in task or Path(task).suffix in (".parquet", *texts.LINES)


def named(task: str) -> str:
    """What a task is called in a record: a file by its name without the ending, cleaned."""
    return name_of(task) if is_file(task) else task


def content(task: str) -> str:
    """A task by its name, that of a file with what the file holds."""
    return f"{named(task)} {text_hash(Path(task).expanduser())}" if is_file(task) else task


def check_names(tasks: Sequence[str]) -> None:
    """Raises ValueError where two tasks would be recorded under one name."""
    seen: dict[str, str] = {}
    for task in tasks:
        _claim(seen, named(task), task)


def load(tasks: Sequence[str], include: str | None) -> Loaded:
    """The tasks that are asked for.

    Args:
        tasks: names of tasks, groups or tags, and paths of files.
        include: a directory with more task files in lm-eval's format.

    Raises:
        ValueError: in one line, for a name that is unknown or given twice, directly or in a group, and
            for a task whose data are out of reach or whose file is no task.
    """
    own = own_tasks()
    foreign = [one for one in tasks if one not in own and not is_file(one)]
    with _hub_or_cache(bool(foreign)):
        index = manager(include, defaults=False)
        # A group of the folder may name lm-eval's tasks.
        if any(one not in index.all_tasks or one in index.all_groups for one in foreign):
            index = manager(include, defaults=True)
        loaded, seen = Loaded({}, {}), dict[str, str]()
        for task in tasks:
            found = _load(index, task)
            for name in [*found.tasks, *found.groups]:
                _claim(seen, name, task)
            loaded.tasks.update(found.tasks)
            loaded.groups.update(found.groups)
    return loaded


def manager(include: str | None, defaults: bool) -> TaskManager:
    """lm-eval's index of our tasks, those of a folder, and with ``defaults`` its own."""
    from lm_eval.tasks import TaskManager

    folders = [TASKS, *([Path(include).expanduser()] if include else [])]
    return TaskManager(include_path=folders, include_defaults=defaults)


def _load(index: TaskManager, task: str) -> Loaded:
    """One task, or all of a group or tag."""
    from jinja2 import TemplateError

    from harness.evaluate.questions import local_task

    if is_file(task):
        found = index.load([local_task(task)])
        return Loaded(found["tasks"], {})
    if task not in index.all_tasks:
        raise ValueError(f"task {task!r}: unknown to lm-eval{assets.near(task, index.all_tasks)}")
    place = index.task_index[task].yaml_path
    if task in own_tasks() and place is not None and place.parent != TASKS:
        raise ValueError(f"task {task!r}: {place} has the name of one of ours; rename it")
    try:
        found = index.load([task])
    except OSError as error:
        raise ValueError(
            f"tasks {task}: data can't be reached ({_line(error)}); give a file of questions "
            f"(eval.tasks=[FILE.jsonl]) or use ours: {', '.join(own_tasks())}"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError,
            TemplateError) as error:  # fmt: skip
        raise ValueError(f"task {task!r}: lm-eval can't make it ({_line(error)})") from error
    loaded = Loaded(found["tasks"], found["groups"])
    for name, group in loaded.groups.items():
        counts = Counter(one.task_name for one in group.get_all_tasks())
        twice = [one for one, count in counts.items() if count > 1 or one == name]
        if twice:
            raise ValueError(f"group {name!r}: its task {twice[0]!r} would count twice")
    return loaded


def _claim(seen: dict[str, str], name: str, task: str) -> None:
    """Notes that ``task`` is recorded under ``name``."""
    if name in seen:
        both = f"{task} twice" if seen[name] == task else f"{seen[name]} and {task}"
        raise ValueError(
            f"tasks {both}: one name {name!r} in the record; leave one out, or rename a file"
        )
    seen[name] = task


def _line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]


@contextmanager
def _hub_or_cache(needed: bool) -> Iterator[None]:
    """Without a hub, reads from the local cache at once instead of after minutes of retries."""
    if not needed or texts.hub_reachable():
        yield
        return
    import datasets
    import huggingface_hub

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
