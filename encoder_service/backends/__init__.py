"""Engines that run models."""
