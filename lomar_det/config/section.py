"""A section of a config: every setting's name, type, default, range and meaning in one field.

A section is a dataclass. `Section.defaults` gives the LazyConfigs of ``configs/common`` their
values. `Section.read` checks a loaded config and returns an instance, which the run uses instead
of the config. A field that names a ``yacs`` key is also a setting of yaml configs. `describe`
prints the fields for ``docs/settings.md``.
"""

import copy
import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

from omegaconf import MISSING, DictConfig, OmegaConf

from ..errors import UserError
from .rules import Rule


def setting(default: Any, rule: Rule, doc: str, yacs: str | None = None) -> Any:
    """A field of a `Section`.

    Args:
        default: The default, or ``MISSING`` if the user must give a value.
        rule: Which values are allowed.
        doc: What the setting means, in a phrase.
        yacs: The key of the setting in yaml configs, if it has one.
    """
    metadata = {"rule": rule, "doc": doc, "yacs": yacs}
    return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)


def other_default(section: type["Section"], name: str, default: Any) -> Any:
    """The field ``name`` of ``section`` with another default, for a section that inherits it."""
    metadata = next(field.metadata for field in fields(section) if field.name == name)
    return setting(default, **metadata)


def subsection(section: type["Section"]) -> Any:
    """A field that is a section itself."""
    return dataclasses.field(default_factory=section, metadata={"section": section})


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of all sections; `read` returns an instance whose settings obey their rules."""

    @classmethod
    def defaults(cls, **values) -> DictConfig:
        """The section as part of a LazyConfig; ``values`` replace defaults."""
        return OmegaConf.create(dataclasses.asdict(cls(**values)))

    @classmethod
    def read(cls, cfg: DictConfig, name: str, skip: Collection[str] = ()) -> Self:
        """Checks a section of a config.

        Args:
            cfg: A loaded config.
            name: Dotted name of the section, such as ``train``.
            skip: Keys that the caller does not need; they may be missing.

        Raises:
            UserError: a setting is missing, does not exist, or breaks its rule.
        """
        node = OmegaConf.select(cfg, name)
        if not isinstance(node, DictConfig):
            raise UserError(f"{name}={node} must be a section of settings")
        known = {field.name: field for field in fields(cls)}
        values = {}
        for key in (key for key in node if key not in skip):
            if key not in known:
                there = ", ".join(sorted(known))
                raise UserError(f"{name} has no setting {key!r}; it has {there}")
            metadata, full_name = known[key].metadata, f"{name}.{key}"
            if "section" in metadata:
                values[key] = metadata["section"].read(cfg, full_name)
            else:
                missing = OmegaConf.is_missing(node, key)
                values[key] = None if missing else _plain(node[key])
                if missing or known[key].default_factory() == MISSING and not values[key]:
                    raise UserError(f"{full_name} is not set: {metadata['doc']}")
                if not metadata["rule"].holds(values[key]):
                    words = metadata["rule"].words
                    raise UserError(f"{full_name}={values[key]} must be {words}")
        return cls(**values)

    @classmethod
    def walk(cls, name: str) -> Iterator[tuple[str, dataclasses.Field]]:
        """Yields the full name and the field of every setting, subsections included."""
        for field in fields(cls):
            if "section" in field.metadata:
                yield from field.metadata["section"].walk(f"{name}.{field.name}")
            else:
                yield f"{name}.{field.name}", field


def describe(section: type[Section], name: str, with_yacs: bool = False) -> str:
    """A section as a Markdown table; ``with_yacs`` adds a column for the keys of yaml configs."""
    rows = [("setting", "default", "must be", "meaning", "in yaml"), ("---",) * 5]
    for full_name, field in section.walk(name):
        default = field.default_factory()
        shown = "to be given" if default == MISSING else f"`{_text(default)}`"
        yacs = f"`{field.metadata['yacs']}`" if field.metadata["yacs"] else ""
        rows.append(
            (f"`{full_name}`", shown, field.metadata["rule"].words, field.metadata["doc"], yacs)
        )
    lines = (" | ".join(row if with_yacs else row[:-1]) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _text(value: Any) -> str:
    """A value as a user types it after ``key=``."""
    if value is None:
        return "null"
    return value or "''" if isinstance(value, str) else str(value)
