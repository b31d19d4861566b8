"""Where cards of folders exported before said that `register` is."""

from stages.families import register as register
