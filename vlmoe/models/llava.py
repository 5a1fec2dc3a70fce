"""Where ``load_base`` used to be: the model cards of earlier runs name this place."""

from vlmoe.models.load import Base, load_base

__all__ = ["Base", "load_base"]
