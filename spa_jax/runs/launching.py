"""What the launch scripts share: their flags, the devices, and errors as one line."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from spa_jax.configuration import named
from spa_jax.errors import ConfigError, SpaError
from spa_jax.parallel import use_host_cores
from spa_jax.runs import compiled, peers
from spa_jax.runs.config_files import load_config, split_settings, with_setting

_EXIT_ERROR, _EXIT_STOPPED = 2, 143
_settings: list[tuple[str, str]] = []
_shown: set[str] = set()


class _PathParser(flags.ArgumentParser):
    """A path, in which `~` is the user's home."""

    def parse(self, argument: Any) -> Any:
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help: str, *, required: bool = False) -> Any:
    """Define a flag for a path, in which `~` is the user's home; the holder of its value is returned."""
    return flags.DEFINE(_PathParser(), name, default, help, required=required)


def define_flags(default_workdir: str | None = None) -> Any:
    """Define --config, --workdir, --data_dir, --host_devices, --compilation_cache, --distributed and its companions.

    Returns:
        The holder of the config's file; `config_value` makes the config of it.
    """
    define_path("workdir", default_workdir, "Directory of the run: checkpoints, metrics, report.")
    define_path("data_dir", None, "Where prepared tensorflow-datasets or image folders lie; sets config.data.data_dir.")
    flags.DEFINE_integer(
        "host_devices", None, "On CPU, devices to split the cores into (default: one a core). No effect on GPU and TPU."
    )
    flags.DEFINE_bool("distributed", False, "Join a job of several processes, found from the cluster or told by flags.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, with --distributed where no cluster says it.")
    flags.DEFINE_integer("num_processes", None, "How many processes the job has, with --coordinator.")
    flags.DEFINE_integer("process_index", None, "Which of them this is, from 0, with --coordinator.")
    flags.DEFINE_integer("join_timeout", 60, "Seconds to wait for the other processes to join.", lower_bound=1)
    define_path(
        "compilation_cache",
        None,
        f"Directory that keeps compiled programs between runs, or {compiled.OFF} (default: spa_jax/compiled in the "
        "user's cache folder).",
    )
    return flags.DEFINE_string(
        "config", None, "Experiment, FILE or FILE:argument=value,...; set any entry with --config.key=value."
    )


def launch(
    main: Callable[[], Any], *, collectives: Callable[[], bool] = lambda: True, needs_config: bool = True
) -> None:
    """Parse the flags, set up the devices and run `main`, ending with one line and status 2 for an error of the user.

    An error of the program itself, which no check of ours has raised, keeps its traceback.

    Args:
        main: the program.
        collectives: asked when the flags are parsed whether devices will wait for each other, see
            `spa_jax.parallel.use_host_cores`.
        needs_config: whether the program takes the flags of `define_flags`; without them no device is set up.
    """
    if needs_config:
        flags.mark_flags_as_required(["config"])

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"arguments {arguments[1:]!r} are not flags; flags begin with --")
        logging.set_verbosity(logging.WARNING)
        jax.config.update("jax_traceback_filtering", "off")  # tracebacks tell whose an error is
        warnings.showwarning = _show_once
        try:
            if needs_config:
                _set_up_devices(collectives())
            main()
        except Exception as error:
            peers.outlast(error)
            if not _is_the_users(error):
                peers.leave_with_traceback()
                raise
            text = str(error).partition("\n")[0] if isinstance(error, jax.errors.JaxRuntimeError) else str(error)
            print(f"{type(error).__name__}: {text}", file=sys.stderr)
            if type(error).__name__ == "Interrupted":
                sys.exit(_EXIT_STOPPED)
            peers.leave(_EXIT_ERROR)

    app.run(guarded, flags_parser=_parse_flags)


def _is_the_users(error: Exception) -> bool:
    """Whether an error is one of this library's own words on what it was given, or of the machine's files or memory."""
    if isinstance(error, SpaError | OSError):
        return True
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(__file__).parents[1])


def _show_once(message: Warning | str, category: type[Warning], *place: Any, **file: Any) -> None:
    """A warning as one line, however often it comes and from wherever."""
    line = f"{category.__name__}: {message}"
    if line not in _shown:
        _shown.add(line)
        print(line, file=sys.stderr)


def _parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing, after the settings of the config were taken out, with one line for a mistake."""
    try:
        others, _settings[:] = split_settings(flags.FLAGS.read_flags_from_files(arguments, force_gnu=False))
        return flags.FLAGS(others)
    except (flags.Error, OSError) as error:
        print(f"error: {error}\nFor help: {arguments[0]} --help", file=sys.stderr)
        sys.exit(_EXIT_ERROR)


def _set_up_devices(collectives: bool) -> None:
    compiled.use_compilation_cache(flags.FLAGS.compilation_cache)
    use_host_cores(flags.FLAGS.host_devices, collectives=collectives)
    told = (flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_index)
    if flags.FLAGS.distributed:
        peers.join(*told, flags.FLAGS.join_timeout)
    elif any(value is not None for value in told):
        raise SpaError("--coordinator, --num_processes and --process_index need --distributed")
    try:
        jax.devices()
    except jax.errors.JaxRuntimeError:  # of a job whose other processes are gone
        raise
    except (RuntimeError, AssertionError) as error:  # JAX only asserts that one of several names of a GPU is there
        platforms, reason = jax.config.values["jax_platforms"], str(error).partition("\n")[0]
        raise SpaError(f"JAX_PLATFORMS={platforms!r} has no devices here. {reason}".strip()) from error


def config_value(holder: Any) -> dict[str, Any]:
    """The config of the command line as plain data: what the file gives, the settings, and --data_dir.

    Raises:
        ConfigError: the file fails, or a setting cannot be put in.
        SpaError: --workdir is missing.
    """
    if not flags.FLAGS.workdir:
        raise SpaError("--workdir is missing: name the directory of the run")
    config = load_config(holder.value)
    for key, text in _settings:
        config = with_setting(config, key, text)
    if flags.FLAGS.data_dir is not None:
        data = named(config.get("data"))
        if not isinstance(data, dict):
            raise ConfigError(f"--data_dir={flags.FLAGS.data_dir}: the config has no data")
        config["data"] = data | {"data_dir": flags.FLAGS.data_dir}
    return config
