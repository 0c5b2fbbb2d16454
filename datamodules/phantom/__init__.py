"""Patients of the project's own making: drawn from a seed, rendered as CT, put into words, written in real layouts."""
