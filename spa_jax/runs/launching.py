"""What the launch scripts share: their flags, the devices, and errors as one line."""

import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from spa_jax.errors import SpaError
from spa_jax.parallel import use_host_cores

_EXIT_ERROR, _EXIT_STOPPED = 2, 143


def define_flags(default_workdir: str | None = None) -> Any:
    """Define --config, --workdir, --data_dir, --host_devices, --distributed and --compilation_cache.

    Returns:
        The holder of the config flag's value.
    """
    flags.DEFINE_string("workdir", default_workdir, "Directory of the run: checkpoints, metrics, report.")
    flags.DEFINE_string(
        "data_dir", None, "Where prepared tensorflow-datasets or image folders lie; sets config.data.data_dir."
    )
    flags.DEFINE_integer(
        "host_devices", None, "On CPU, devices to split the cores into (default: one a core). No effect on GPU and TPU."
    )
    flags.DEFINE_bool("distributed", False, "Join a job of several processes (jax.distributed.initialize).")
    flags.DEFINE_string("compilation_cache", None, "Directory that keeps compiled programs between runs.")
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment, FILE or FILE:argument=value,...; override any entry with --config.key=value.",
        lock_config=True,
    )


def launch(main: Callable[[], Any], *, collectives: Callable[[], bool] = lambda: True) -> None:
    """Parse the flags, set up the devices and run `main`, whose errors end the program with one line and status 2.

    Args:
        main: the program.
        collectives: asked when the flags are parsed whether devices will wait for each other, see
            `spa_jax.parallel.use_host_cores`.
    """
    flags.mark_flags_as_required(["config"])

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"arguments {arguments[1:]!r} are no flags; flags begin with --")
        logging.set_verbosity(logging.WARNING)
        try:
            _set_up_devices(collectives())
            main()
        except (ValueError, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            stopped = type(error).__name__ == "Interrupted"
            sys.exit(_EXIT_STOPPED if stopped else _EXIT_ERROR)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing, with a misspelt config key or a wrong type as one line instead of a traceback."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        message = str(error)
    except (KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        message = str(error.args[0]) if error.args else repr(error)
        name = message.strip("'\"")
        given = [flag for flag in (argument.partition("=")[0] for argument in arguments) if name in flag.split(".")]
        if given:  # of a key that resembles none of the config's, ml_collections gives the name and nothing else
            message = f"{' '.join(given)}: the config has no key {name!r}"
    print(f"error: {message}\nFor help: {arguments[0]} --help", file=sys.stderr)
    sys.exit(_EXIT_ERROR)


def _set_up_devices(collectives: bool) -> None:
    if flags.FLAGS.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", flags.FLAGS.compilation_cache)
    use_host_cores(flags.FLAGS.host_devices, collectives=collectives)
    if flags.FLAGS.distributed:
        jax.distributed.initialize()


def config_value(holder: Any) -> dict[str, Any]:
    """The parsed config as plain data, with --data_dir put in.

    Raises:
        SpaError: --workdir is missing.
    """
    if not flags.FLAGS.workdir:
        raise SpaError("--workdir is missing: name the directory of the run")
    config = holder.value.to_dict()
    if flags.FLAGS.data_dir is not None:
        config["data"] = config["data"] | {"data_dir": flags.FLAGS.data_dir}
    return config
