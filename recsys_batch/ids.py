"""Ids of users and items: BIGINT or STRING, read the same way wherever they come in."""

from __future__ import annotations
