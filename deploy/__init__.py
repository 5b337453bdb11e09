"""Composition: controller, Ray, plain processes, command line."""
