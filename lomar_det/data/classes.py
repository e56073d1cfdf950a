"""The names of classes, which checkpoints hold as ``meta["classes"]``."""

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig

from ..errors import UserError


def dataset_classes(dataset: DictConfig) -> list[str]:
    """Names of the classes of ``dataloader.{train,test}.dataset``; empty if they are unknown."""
    names = dataset.get("names") or []
    names = [names] if isinstance(names, str) else list(names)
    return list(MetadataCatalog.get(names[0]).get("thing_classes", [])) if names else []


def check_class_names(trained: list[str] | None, given: list[str], checkpoint: str) -> None:
    """Refuses data with other classes than the model was trained on.

    A model has only the numbers of its classes, so its metrics on other classes mean nothing.

    Raises:
        UserError: the names differ, or their order.
    """
    if not trained or not given or trained == given:
        return
    missing = [name for name in trained if name not in given]
    added = [name for name in given if name not in trained]
    differs = f"missing there: {missing[:5]}, only there: {added[:5]}"
    raise UserError(
        f"{checkpoint} knows {len(trained)} classes, the data lists {len(given)}: "
        f"{differs if missing or added else 'the same ones in another order of their ids'}; it "
        "must list exactly the classes that the model was trained on"
    )
