"""What is measured of an architecture: each metric one value that knows all of itself.

To add one, write a file that makes a `TextMetric` or a `QuestionMetric` and enters it:
``stages.config.choices.METRICS.add("mine", mine)``; params name the file under ``extensions``. It is then
measured, forecast, searched for and reported like ours. ``tests/recipes/probability.py`` is such a file.
"""
