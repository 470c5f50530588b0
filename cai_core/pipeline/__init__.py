"""Runs recipes: recipe -> graph of stages -> plan -> worker processes -> artifacts and a run folder."""
