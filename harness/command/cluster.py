"""Ray: the cluster that ``RAY_ADDRESS`` names, or one on this machine for as long as a sweep takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from harness.settings.config import ConfigError

STORE = 80 * 2**20  # bytes of shared memory for what runs hand over, which is next to nothing


@contextmanager
def cluster(launcher: Launcher, environment: Mapping[str, str]) -> Iterator[None]:
    """Inside, Ray's launcher finds Ray connected; other launchers need nothing.

    What the launcher would do by itself, but for three things: it gives a running cluster settings
    that only a new one takes, workers there do not see the ``environment``, and a run that fits on no
    node would wait for ever.

    Raises:
        ConfigError: there is no such cluster, or none of its nodes offers what a run takes; one line.
    """
    settings: Any = getattr(launcher, "ray_cfg", None)
    if settings is None:
        yield
        return
    import ray

    init, remote = _plain(settings["init"]), _plain(settings["remote"])
    address = init.get("address") or os.environ.get("RAY_ADDRESS")
    if address is None:
        init.setdefault("object_store_memory", STORE)
    own = init.pop("runtime_env", None) or {}
    env = {**own, "env_vars": {**environment, **own.get("env_vars", {})}}
    try:
        ray.init(**init, runtime_env=env)
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"RAY_ADDRESS={address}: no connection to Ray: {said}") from None
    try:
        check_nodes(remote, [one["Resources"] for one in ray.nodes() if one["Alive"]])
        yield
    finally:
        ray.shutdown()


def _plain(node: Any) -> dict[str, Any]:
    """A node of the configuration as plain data; an empty one where there is none."""
    found: Any = OmegaConf.to_container(OmegaConf.create(node or {}), resolve=True)
    return dict(found)


def check_nodes(remote: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError where a run takes more than any node has.

    Args:
        remote: ``hydra.launcher.ray.remote``.
        nodes: what each node has, by Ray's names.
    """
    wanted = {"CPU": remote.get("num_cpus") or 0, "GPU": remote.get("num_gpus") or 0}
    wanted |= remote.get("resources") or {}
    if any(all(node.get(kind, 0) >= most for kind, most in wanted.items()) for node in nodes):
        return
    knobs = {"CPU": "threads", "GPU": "hydra.launcher.ray.remote.num_gpus"}
    knob = {
        kind: knobs.get(kind, f"hydra.launcher.ray.remote.resources.{kind}") for kind in wanted
    }
    most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
    lacking = [kind for kind in wanted if wanted[kind] > most[kind]] or list(wanted)
    asked = ", ".join(f"{knob[kind]}={wanted[kind]:g}" for kind in lacking)
    has = ", ".join(f"{most[kind]:g} {kind}" for kind in lacking)
    together = "" if wanted[lacking[0]] > most[lacking[0]] else " together"
    raise ConfigError(f"{asked}: no node of {len(nodes)} has that{together}; at most {has}")
