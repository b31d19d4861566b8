"""The import of `register` that older model cards name, kept so that it still works."""

from stages.families import register as register
