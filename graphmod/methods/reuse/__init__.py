"""Reuse: only what a task needs of a trained network, physically small."""

from graphmod.errors import BudgetError
from graphmod.methods.reuse.reengineer import reengineer
from graphmod.methods.reuse.report import Reengineered, ReuseReport, Rung
from graphmod.methods.reuse.search import Stage
from graphmod.methods.reuse.task import Task

__all__ = ["BudgetError", "Reengineered", "ReuseReport", "Rung", "Stage", "Task", "reengineer"]
