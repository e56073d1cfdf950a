"""Reads a LazyConfig with overrides; a user's mistake becomes one clear error."""

import builtins
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from ..errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
# setup.py copies the recipes into an installed package. In a checkout they lie beside it.
CONFIGS = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)


def load_config(
    path: str | Path, overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> DictConfig:
    """Reads a config file, applies overrides and freezes the result.

    Args:
        path: A LazyConfig.
        overrides: ``key=value``, as on a command line.
        values: Further overrides, as Python values by dotted name.

    Raises:
        UserError: the file is missing or not a LazyConfig, or an override cannot be applied.
    """
    if not Path(path).is_file():
        raise UserError(f"the config file {path} does not exist; see the folder configs/")
    if Path(path).suffix != ".py":
        raise UserError(f"{path} is not a LazyConfig: this tool takes .py configs")
    before = builtins.__import__
    try:
        cfg = LazyConfig.load(str(path))
    except SyntaxError as error:
        raise UserError(f"{path} is not valid Python: {error}") from None
    except Exception as error:  # a config is a program and can raise anything
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{path} cannot be loaded ({what}); set LOMAR_DEBUG=1 for the traceback"
        ) from error
    finally:
        # LazyConfig replaces __import__ while it reads a file, and leaves it so after an error.
        builtins.__import__ = before
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            raise UserError(f"{override!r} is not an override of the form key=value")
        _check_exists(cfg, key.lstrip("+"), path, added=override.startswith("+"))
        try:
            _apply(cfg, override)
        except (HydraException, OmegaConfBaseException, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the override {override!r} cannot be applied: {error}") from None
    for key, value in (values or {}).items():
        _check_exists(cfg, key, path, added=False)
        try:
            OmegaConf.update(cfg, key, value, merge=isinstance(value, dict))
        except (OmegaConfBaseException, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{key}={value!r} cannot be set: {error}") from None
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except InterpolationResolutionError as error:
        # The first line says what is wrong, the others say where.
        raise UserError(f"{path}, with overrides: {str(error).splitlines()[0]}") from None
    return frozen(cfg)


def frozen(cfg: DictConfig) -> DictConfig:
    """Makes a config refuse assignments, and returns it."""
    OmegaConf.set_readonly(cfg, True)
    return cfg


def thawed(cfg: DictConfig) -> DictConfig:
    """A writable copy of a config."""
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    return cfg


def with_settings(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A frozen copy of a config with some values replaced or added, by dotted name."""
    cfg = thawed(cfg)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return frozen(cfg)


def require_sections(cfg: DictConfig, path: str | Path, folder: str, *names: str) -> None:
    """Refuses a config of another stage.

    Args:
        cfg: The config, read from ``path``.
        folder: Where configs for this tool lie, in ``configs/``.
        names: Sections or settings that it must have, such as ``data.crop_scale``.

    Raises:
        UserError: one of them is missing.
    """
    for name in names:
        parent, _, leaf = name.rpartition(".")
        section = OmegaConf.select(cfg, parent) if parent else cfg
        if not (isinstance(section, DictConfig) and leaf in set(section)):
            raise UserError(
                f"{path} is no config for this tool: it has no {name}; see configs/{folder}"
            )


def find_config(name: str | Path, folder: str) -> Path:
    """The path of a config file, or of the recipe of that name.

    Recipes are the files of ``configs/``; an installation includes them.

    Args:
        name: Path of a .py file, or the name of a recipe.
        folder: Folder of the recipes, in ``configs/``: ``pretrain``, ``coco``, ``custom``.

    Raises:
        UserError: there is no such file and no such recipe; the message lists the recipes.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = CONFIGS / folder
    path = recipes / f"{str(name).removesuffix('.py')}.py"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in recipes.glob("*.py")))
        raise UserError(f"there is neither a config file nor a recipe {name}; recipes: {known}")
    return path


def _apply(cfg: DictConfig, override: str) -> None:
    """Applies one override in Hydra's syntax; a path outside that syntax is taken literally.

    Unlike in `LazyConfig.apply_overrides`, a list may replace a call that computes a list.
    """
    key, _, value = override.partition("=")
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.is_sweep_override():  # a comma in a path
            value = parsed.value()
    except HydraException:
        if value.startswith(("[", "{", "'", '"')):
            raise
    OmegaConf.update(cfg, key.lstrip("+"), value, merge=isinstance(value, dict))


def _check_exists(cfg: DictConfig, key: str, path: str | Path, added: bool) -> None:
    """Refuses a mistyped key, which OmegaConf would add in silence."""
    parent, _, leaf = key.rpartition(".")
    try:
        node = OmegaConf.select(cfg, parent) if parent else cfg
    except OmegaConfBaseException:
        node = None
    settings = set(node) if isinstance(node, DictConfig) else set()  # `in` overlooks missing values
    takes_any = False
    if "_target_" in settings:
        arguments, takes_any = _arguments(node["_target_"])
        settings = settings - {"_target_"} | arguments
    if node is None or not (added or takes_any or leaf in settings):
        known = ", ".join(sorted(map(str, settings))) or "nothing"
        raise UserError(f"{path} has no setting {key!r}; {parent or 'it'} has {known}")


def _arguments(target: Callable | str) -> tuple[set[str], bool]:
    """Names of the arguments of an ``L(...)`` call, and whether it takes any others, too."""
    function = locate(target) if isinstance(target, str) else target
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin or compiled function has no signature
        return set(), True
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def instantiate_section(cfg: DictConfig, section: str, **live: Any) -> Any:
    """Builds what a section of a config describes, such as ``dataloader.train``.

    Args:
        cfg: The config.
        section: Dotted name of an ``L(...)`` call.
        **live: Arguments that the run gives instead of the config, such as the model.

    Raises:
        UserError: images are missing, or a setting has an impossible value.
    """
    node = OmegaConf.select(cfg, section)
    try:
        if isinstance(node, DictConfig):
            return instantiate({key: node[key] for key in node if key not in live} | live)
        return instantiate(node)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} does not exist: COCO is looked for in the folder that the "
            "environment variable DETECTRON2_DATASETS names; for data of your own, use a config "
            "of configs/custom"
        ) from None
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, AssertionError) as error:
        raise UserError(f"{section}: {error}") from error


def as_list(setting) -> list[str]:
    """The paths of a setting that holds one path or several."""
    several = OmegaConf.is_list(setting) or isinstance(setting, list | tuple)
    return [str(path) for path in setting] if several else [str(setting)]
