"""Budgets and limits: who may use how much, counted in Redis for many machines or in SQLite on one."""
