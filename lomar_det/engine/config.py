"""Loading a LazyConfig with overrides, with one clear error for what a user mistyped."""

from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError


def load_config(path: str | Path, overrides: list[str]) -> DictConfig:
    """Reads a config file and applies ``key=value`` overrides.

    Raises:
        UserError: the file is missing or no LazyConfig, or a setting does not exist.
    """
    if not Path(path).is_file():
        raise UserError(f"the config file {path} does not exist; see the folder configs/")
    if Path(path).suffix != ".py":
        raise UserError(f"{path} is not a LazyConfig: this tool takes .py configs")
    cfg = LazyConfig.load(str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            raise UserError(f"{override!r} is not an override of the form key=value")
        _check_exists(cfg, key.lstrip("+~"), path, added=override.startswith("+"))
    try:
        return LazyConfig.apply_overrides(cfg, overrides)
    except (OmegaConfBaseException, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the overrides {overrides} cannot be applied: {error}") from None


def _check_exists(cfg: DictConfig, key: str, path: str | Path, added: bool) -> None:
    """A mistyped key would otherwise be added in silence and change nothing."""
    parent, _, leaf = key.rpartition(".")
    try:
        node = OmegaConf.select(cfg, parent) if parent else cfg
    except OmegaConfBaseException:
        node = None
    # An L(...) call takes any argument of its target; plain sections only what they list.
    is_call = isinstance(node, DictConfig) and "_target_" in node
    settings = list(node) if isinstance(node, DictConfig) else []  # `in` overlooks missing values
    if node is None or not (added or is_call or leaf in settings):
        known = ", ".join(sorted(map(str, settings))) or "nothing"
        raise UserError(f"{path} has no setting {key!r}; {parent or 'it'} has {known}")
